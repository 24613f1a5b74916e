"""Stop strings, and the lengths of prompts, through the policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import PROMPTS, build, call, plain_tokenizer, rows_of

from chatlearn.data.prompts import fetch
from chatlearn.errors import DataError
from chatlearn.modules.torch import PolicyInference
from chatlearn.modules.torch.stopping import StopStrings


def sample(folder: str, prompts: list[str], **args: Any) -> dict[str, Any]:
    policy = build(PolicyInference, model_path=folder, max_new_tokens=12, **args)
    return call(policy, "forward_step", fetch(policy.build_dataset(prompts), range(len(prompts))))


@pytest.mark.parametrize("max_running", [None, 9])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(llama: str, max_running: int | None) -> None:
    """Against the same responses without stop strings, cut here by hand, token after token."""
    prompts, stop = PROMPTS * 16, ["a", "xy", "m"]
    free, stopped = sample(llama, prompts), sample(llama, prompts, stop=stop, max_running=max_running)
    tokenizer, num_stopped = plain_tokenizer(llama), 0
    for i, ((_, whole), (_, tokens)) in enumerate(zip(rows_of(free), rows_of(stopped), strict=True)):
        text = free["response"][i]
        texts = [tokenizer.decode(whole[:n], skip_special_tokens=True) for n in range(len(whole) + 1)]
        end = next((n for n, begin in enumerate(texts) if any(s in begin for s in stop)), None)
        if end is None:
            assert (tokens, stopped["response"][i]) == (whole, text)
            assert stopped["finished"][i] == free["finished"][i]
            continue
        num_stopped += 1
        assert tokens == whole[:end]
        assert stopped["response"][i] == text[: min(text.find(s) for s in stop if s in texts[end])]
        assert stopped["finished"][i]
    assert 5 < num_stopped < len(prompts) - 5, "the case should have responses of both kinds"
    lengths = stopped["response_mask"].sum(1)
    assert stopped["tokens"].shape[1] == max(map(len, PROMPTS)) + lengths.max()
    torch.testing.assert_close(
        stopped["logprobs"] * stopped["response_mask"],
        free["logprobs"][:, : stopped["tokens"].shape[1]] * stopped["response_mask"],
    )


def test_a_stop_string_in_the_prompt_ends_nothing(llama: str) -> None:
    free, stopped = sample(llama, ["hello_you"]), sample(llama, ["hello_you"], stop=["hello_you"])
    assert rows_of(free) == rows_of(stopped)


def test_evaluation_stops_too(llama: str) -> None:
    policy = build(PolicyInference, model_path=llama, max_new_tokens=12)
    batch = fetch(policy.build_dataset(PROMPTS), range(4))
    free = call(policy, "eval_step", batch)
    letter = free["response"][0][2]
    stopping = build(PolicyInference, model_path=llama, max_new_tokens=12, stop=[letter])
    assert call(stopping, "eval_step", batch)["response"][0] == free["response"][0].split(letter)[0]


class Pieces:
    """Tokens of several letters and of parts of a character."""

    TEXTS = (b"<e", b"nd>!", b"ab", b"\xe2\x82", b"\xac", b"")
    all_special_ids = (5,)

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [b"".join(self.TEXTS[token] for token in row).decode(errors="replace") for row in rows]


def test_stop_strings_across_tokens_and_characters_in_pieces() -> None:
    stop = StopStrings(Pieces(), ["<end>", "€€"])
    rows = {(2, 0, 1): True, (2, 0, 0): False, (3, 4, 3): False, (4, 3, 4, 3, 4): True, (5, 0, 5, 1): True}
    for row, expected in rows.items():
        assert stop.ended([0], [list(row)]) == [expected]
    assert stop.ended(range(5), [list(row) for row in rows]) == list(rows.values())
    assert stop.cut("ab<end>!") == "ab"
    assert stop.cut("ab€") == "ab€"
    assert stop.cut("a€€<end>") == "a"


def test_a_stop_string_after_a_long_response_is_found() -> None:
    stop = StopStrings(Pieces(), ["<end>"])
    assert stop.ended(range(3), [[2] * 500 + [0, 1], [2] * 502, [0] + [5] * 500 + [1]]) == [True, False, True]


def test_the_text_of_a_real_tokenizer_with_dropped_leading_spaces() -> None:
    """SentencePiece's decoders drop the space before a text's first word."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁Q": 0, ":": 1, "▁x": 2, "<unk>": 3}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokens = [2] * 50 + [0, 1]
    assert tokenizer.decode(tokens).endswith("x Q:")
    assert StopStrings(tokenizer, [" Q:"]).ended([0], [tokens]) == [True]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"stop": [""]}, "an empty string would end every response"),
        ({"stop": "x"}, "valid list"),
        ({"prompt_overflow": "drop"}, "'drop' needs a limit; set max_prompt_tokens"),
        ({"prompt_overflow": "cut", "max_prompt_tokens": 3}, "'truncate_left'"),
        ({"max_prompt_tokens": 0}, "greater than or equal to 1"),
        ({"temperature": 0}, "greater than 0"),
        ({"top_p": 0}, "greater than 0"),
        ({"top_p": 1.5}, "less than or equal to 1"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"min_p": -0.1}, "greater than or equal to 0"),
        ({"min_p": 2}, "less than or equal to 1"),
        ({"repetition_penalty": 0}, "greater than 0"),
        ({"bad_words": [""]}, "an empty string is in every text"),
        ({"bad_words": "x"}, "valid list"),
        ({"min_new_tokens": -1}, "greater than or equal to 0"),
        ({"min_new_tokens": 4}, "completion limit below the minimum: max_new_tokens is 3, min_new_tokens 4"),
        ({"max_running": 0}, "greater than or equal to 1"),
    ],
)
def test_arguments_that_make_no_sense(llama: str, args: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PolicyInference.Args(model_path=llama, max_new_tokens=3, **args)


def test_the_policy_limits_its_prompts(llama: str) -> None:
    policy = build(
        PolicyInference, model_path=llama, max_new_tokens=2, max_prompt_tokens=3, prompt_overflow="truncate_left"
    )
    tokenizer = plain_tokenizer(llama)
    batch = fetch(policy.build_dataset(["hello_you", "a"]), [0, 1])
    for data in (batch, {"prompt": ["hello_you", "a"]}):
        assert [tokenizer.decode(prompt) for prompt, _ in rows_of(call(policy, "forward_step", data))] == ["you", "a"]
    strict = build(PolicyInference, model_path=llama, max_new_tokens=2, max_prompt_tokens=3)
    with pytest.raises(DataError, match="prompt 1 has 9"):
        strict.build_dataset(["a", "hello_you"])
    with pytest.raises(DataError, match="prompt 0 has 9"):
        call(strict, "forward_step", {"prompt": ["hello_you", "a"]})
