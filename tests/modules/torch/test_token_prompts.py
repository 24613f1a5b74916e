"""Texts as batches of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import rows_of

from chatlearn import DataError
from chatlearn.data.prompts import fetch
from chatlearn.modules.torch.huggingface import ModelArgs, load_tokenizer
from chatlearn.modules.torch.prompts import Demonstrations, TokenizedPrompts


@pytest.fixture(params=[0, 50_000], ids=["batch by batch", "ahead"], autouse=True)
def _when_tokenized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """When prompts are tokenized makes no difference."""
    monkeypatch.setattr("chatlearn.modules.torch.prompts.MAX_TOKENIZED_AHEAD", request.param)


@pytest.fixture
def tokenizer(llama: str) -> Any:
    return load_tokenizer(ModelArgs(model_path=llama))


def test_prompts_are_padded_on_the_left(tokenizer: Any) -> None:
    dataset = TokenizedPrompts(["abc", "d", "ef"], tokenizer)
    assert len(dataset) == 3
    batch = fetch(dataset, [1, 0])
    assert batch["prompt"] == ["d", "abc"]
    assert batch["prompt_tokens"].tolist() == [[0, 0, 6], [3, 4, 5]]
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["prompt_tokens"].dtype == batch["prompt_mask"].dtype == torch.int64


def test_the_columns_of_a_dict_stay_with_it(tokenizer: Any) -> None:
    samples = [{"prompt": "abc", "answer": 1, "entry": {"a": 2}}, {"prompt": "d", "answer": 3, "entry": {}}]
    batch = fetch(TokenizedPrompts(samples, tokenizer), [1, 0])
    assert batch["answer"] == [3, 1]
    assert batch["entry"] == [{}, {"a": 2}]


@pytest.mark.parametrize("prompt", [7, {"question": "abc"}, {"prompt": 7}, None])
def test_what_is_no_prompt_is_named(tokenizer: Any, prompt: Any) -> None:
    with pytest.raises(DataError, match="a prompt is a str, or a dict"):
        fetch(TokenizedPrompts(["abc", prompt], tokenizer), [0, 1])


def test_a_prompt_without_tokens_is_named(tokenizer: Any) -> None:
    """A language model has no distribution for a first token without a context."""
    with pytest.raises(DataError, match=r"no tokens"):
        fetch(TokenizedPrompts(["abc", ""], tokenizer), [0, 1])


def test_demonstrations_end_with_the_end_token(tokenizer: Any) -> None:
    pairs = [{"prompt": "abc", "response": "x"}, {"prompt": "d", "response": "yz"}]
    batch = fetch(Demonstrations(pairs, tokenizer), [0, 1])
    assert rows_of(batch) == [([3, 4, 5], [26, 1]), ([6], [27, 28, 1])]
    assert batch["tokens"].tolist() == [[3, 4, 5, 26, 1, 0], [0, 0, 6, 27, 28, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert batch["response_mask"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    assert batch["response_mask"].dtype == torch.float32
    assert batch["tokens"].dtype == batch["attention_mask"].dtype == torch.int64
    assert batch["prompt"] == ["abc", "d"]
    assert batch["response"] == ["x", "yz"]


def test_an_empty_demonstration_teaches_to_end(tokenizer: Any) -> None:
    batch = fetch(Demonstrations([{"prompt": "a", "response": ""}], tokenizer), [0])
    assert rows_of(batch) == [([3], [1])]
    assert batch["tokens"].dtype == torch.int64


def test_a_demonstration_needs_a_prompt_of_tokens(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no tokens"):
        fetch(Demonstrations([{"prompt": "", "response": "a"}], tokenizer), [0])


@pytest.mark.parametrize("pair", ["abc", {"prompt": "a"}, {"prompt": "a", "response": 3}])
def test_what_is_no_demonstration_is_named(tokenizer: Any, pair: Any) -> None:
    with pytest.raises(DataError, match=r"(?s)sample 0 .*a demonstration is a dict"):
        fetch(Demonstrations([pair], tokenizer), [0])
