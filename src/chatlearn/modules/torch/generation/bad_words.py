"""Bad words: texts that never appear in a response, whatever tokens would spell them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class BadWords:
    """Which tokens would complete a bad word, for every beginning of it that the text may end with.

    Works on bytes, so a word counts however tokens cut it, inside of a character too. Special tokens have no text.

    Args:
        tokenizer: of Hugging Face format.
        words: texts, none of them empty.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        self.pieces = _pieces(tokenizer)
        self._words = [word.encode() for word in words]
        self.always = [i for i, piece in enumerate(self.pieces) if any(word in piece for word in self._words)]
        self._completions: dict[bytes, list[int]] = {}
        for word in self._words:
            for cut in range(1, len(word)):
                rest = word[cut:]
                tokens = {i for i, piece in enumerate(self.pieces) if piece.startswith(rest)}
                known = self._completions.get(word[:cut], ())
                self._completions[word[:cut]] = sorted(tokens.union(known))
        self.reach = max(map(len, self._words)) - 1

    def watch(self, input_ids: Tensor, attention_mask: Tensor) -> Watch:
        """A watch over a batch of sequences that begin with prompts, both ``[B, P]``."""
        return Watch(self, input_ids, attention_mask)

    def completing(self, text: bytes) -> list[int]:
        """The tokens that would complete a bad word whose beginning is at the end of a text."""
        ends = (text[start:] for start in range(len(text)))
        return [token for end in ends for token in self._completions.get(end, ())]


class Watch:
    """The last bytes of each text of a batch, and what they forbid.

    The end of a prompt counts: a word that begins there can't be completed by the response.
    """

    def __init__(self, bad_words: BadWords, input_ids: Tensor, attention_mask: Tensor) -> None:
        self._bad_words, self._ends = bad_words, [b""] * len(input_ids)
        self._always: Tensor | None = None
        if bad_words.reach:
            for row, (tokens, mask) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
                self._ends[row] = self._end_of(_listed(tokens[mask]))

    def drawn(self, tokens_N: Tensor, rows: list[int]) -> None:
        """Takes note of the tokens ``[N]`` that some rows of the batch got."""
        pieces, reach = self._bad_words.pieces, self._bad_words.reach
        if reach:
            for row, token in zip(rows, _listed(tokens_N), strict=True):
                if token < len(pieces) and pieces[token]:
                    self._ends[row] = (self._ends[row] + pieces[token])[-reach:]

    def forbid(self, logits_NV: Tensor, rows: list[int]) -> None:
        """Sets the logits of tokens that would complete a bad word to minus infinity, in place."""
        if self._always is None:
            self._always = torch.tensor(self._bad_words.always, dtype=torch.int64, device=logits_NV.device)
        logits_NV.index_fill_(1, self._always, -math.inf)
        found = [
            (place, token) for place, row in enumerate(rows) for token in self._bad_words.completing(self._ends[row])
        ]
        if found:
            places, tokens = zip(*found, strict=True)
            logits_NV[list(places), list(tokens)] = -math.inf

    def _end_of(self, tokens: list[int]) -> bytes:
        pieces, reach, end = self._bad_words.pieces, self._bad_words.reach, b""
        for token in reversed(tokens):
            if len(end) >= reach:
                break
            end = (pieces[token] if token < len(pieces) else b"") + end
        return end[-reach:]


def _pieces(tokenizer: Any) -> list[bytes]:
    """What each token adds to a text, without special tokens."""
    count = len(tokenizer)
    special = frozenset(tokenizer.all_special_ids)
    anchor = _anchor(tokenizer, count, special)
    start = tokenizer.decode([anchor])
    texts = tokenizer.batch_decode([[anchor, token] for token in range(count)])
    names: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(count)))
    pieces: list[bytes] = []
    for token, (text, name) in enumerate(zip(texts, names, strict=True)):
        if token in special or name is None:
            pieces.append(b"")
        elif "\ufffd" in text:  # a part of a character; its name says which
            pieces.append(_bytes_of(name))
        else:
            pieces.append(text.removeprefix(start).encode())
    return pieces


def _anchor(tokenizer: Any, count: int, special: frozenset[int]) -> int:
    """A token to put before others, since some tokenizers drop the space that a text begins with."""
    texts = tokenizer.batch_decode([[token] for token in range(count)])
    spoken = [i for i, text in enumerate(texts) if i not in special and text and "\ufffd" not in text]
    letters = [i for i in spoken if len(texts[i]) == 1 and texts[i].isalpha()]
    return (letters or spoken or [0])[0]


def _bytes_of(name: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(name):
        return bytes([int(match[1], 16)])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in name) if all(letter in letters for letter in name) else name.encode()


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write for bytes (GPT-2's table): printable bytes stand for themselves,
    the others for the letters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }


def _listed(tokens: Tensor) -> list[int]:
    return tokens.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # a bare list
