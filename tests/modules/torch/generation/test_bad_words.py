"""Bad words never appear, whatever tokens would spell them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import PROMPTS, build, call, make_tokenizer
from transformers import NoBadWordsLogitsProcessor

from chatlearn.data.prompts import fetch
from chatlearn.modules.torch import PolicyInference
from chatlearn.modules.torch.generation import BadWords


class Pieces:
    """A tokenizer with the given pieces; the last one is special."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = (*pieces, b"<end>")
        self.all_special_ids = [len(pieces)]

    def __len__(self) -> int:
        return len(self.pieces)

    def decode(self, row: list[int]) -> str:
        return b"".join(self.pieces[token] for token in row).decode(errors="replace")

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Parts of characters by the names that SentencePiece gives them."""
        names = [self.pieces[token] for token in ids]
        return [f"<0x{name[0]:02X}>" if name[0] > 127 else name.decode() for name in names]


def forbidden(tokenizer: Any, words: list[str], prompt: list[int], *drawn: int) -> list[int]:
    """Tokens that may not follow a prompt and the tokens after it, as lone row 1 of a batch of 2."""
    ids, mask = torch.tensor([[0] * len(prompt), prompt]), torch.ones(2, len(prompt))
    watch = BadWords(tokenizer, words).watch(ids, mask)
    for token in drawn:
        watch.drawn(torch.tensor([token]), [1])
    logits = torch.zeros(1, len(tokenizer))
    watch.forbid(logits, [1])
    return logits[0].isinf().nonzero().flatten().tolist()


def test_words_across_pieces() -> None:
    tokenizer = Pieces(b"c", b"bad", b"b", b"a", b"d", b"ad", b"ad!", b"xba", b"dd")
    assert forbidden(tokenizer, ["bad"], [0]) == [1], "the piece that holds it, always"
    assert forbidden(tokenizer, ["bad"], [0], 2) == [1, 5, 6]
    assert forbidden(tokenizer, ["bad"], [0], 2, 3) == [1, 4, 8]
    assert forbidden(tokenizer, ["bad"], [0], 7) == [1, 4, 8]
    assert forbidden(tokenizer, ["bad"], [0], 2, 3, 0) == [1]
    assert forbidden(tokenizer, ["bad"], [0, 2, 3]) == [1, 4, 8], "it may begin in the prompt"
    assert forbidden(tokenizer, ["bad"], [0], 2, 3, 9) == [1, 4, 8], "a special token has no text"
    assert forbidden(tokenizer, ["bad", "c"], [0], 2) == [0, 1, 5, 6]
    assert forbidden(tokenizer, ["aa", "ab"], [0], 3) == [1, 2, 3, 5, 6]


def test_words_whose_characters_are_in_pieces() -> None:
    """The euro sign is the bytes e2 82 ac."""
    tokenizer = Pieces(b"c", b"\xe2", b"\x82", b"\xac", "€".encode(), b"x")
    assert forbidden(tokenizer, ["€x"], [0], 1, 2, 3) == [5]
    assert forbidden(tokenizer, ["€x"], [0], 4) == [5]
    assert forbidden(tokenizer, ["€"], [0], 1, 2) == [3, 4]
    assert forbidden(tokenizer, ["€"], [0], 1) == [4]


def test_byte_level_tokenizers_cut_characters_too() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"a": 0, "â": 1, "Ĥ": 2, "¬": 3, "Ġx": 4, "<end>": 5}, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert tokenizer.decode([1, 2, 3, 4]) == "€ x"
    assert forbidden(tokenizer, ["€"], [0], 1, 2) == [3]
    assert forbidden(tokenizer, ["€ x"], [0], 1, 2, 3) == [4]


def test_with_a_letter_per_token_they_are_those_of_transformers() -> None:
    tokenizer = make_tokenizer()
    words = ["ab", "b", "bca", "zz"]
    theirs = NoBadWordsLogitsProcessor([tokenizer(word)["input_ids"] for word in words], eos_token_id=1)
    texts = ["a", "xa", "bc", "zb", "z", "bca"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        expected = theirs(torch.tensor([ids]), torch.zeros(1, len(tokenizer)))
        assert forbidden(tokenizer, words, ids) == expected[0].isinf().nonzero().flatten().tolist()


@pytest.mark.parametrize("max_running", [None, 7])
def test_a_policy_never_says_them(llama: str, max_running: int | None) -> None:
    prompts = PROMPTS * 24

    def texts(bad_words: list[str]) -> list[str]:
        args = {"model_path": llama, "max_new_tokens": 12, "bad_words": bad_words, "max_running": max_running}
        policy = build(PolicyInference, **args)
        return call(policy, "forward_step", fetch(policy.build_dataset(prompts), range(len(prompts))))["response"]

    free = texts([])
    pairs = sorted({text[i : i + 2] for text in free for i in range(len(text) - 1)})[:40]
    said = [word for word in (*pairs, "e") if any(word in text for text in free)]
    assert len(said) > 30
    assert not [text for text in texts(said) for word in said if word in text]
