"""Text prompts as batches of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chatlearn.data.collate import Samples
from chatlearn.errors import DataError
from chatlearn.types import Batch

MAX_TOKENIZED_AHEAD = 50_000
"""Larger data sets are tokenized batch by batch, so that they start at once and take no memory."""


class TokenizedPrompts:
    """Prompts (strings, or dicts with a key ``prompt`` whose other keys become columns), tokenized.

    Batches hold ``prompt`` (list of str), the other columns as lists, ``prompt_tokens`` ``[B, P]`` int64, padded on
    the left, and ``prompt_mask`` ``[B, P]`` int64.

    Args:
        prompts: a sequence of str or dict.
        tokenizer: of Hugging Face format, padding on the left.
    """

    def __init__(self, prompts: Sequence[Any], tokenizer: Any) -> None:
        self._prompts, self._tokenizer = prompts, tokenizer
        self._known: list[list[int]] | None = None
        if len(prompts) <= MAX_TOKENIZED_AHEAD:
            self._known = contexts(tokenizer, [self[index]["prompt"] for index in range(len(prompts))])

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns = prompt_columns(self._prompts[index], index)
        return columns if self._known is None else {**columns, "prompt_tokens": self._known[index]}

    def collate_fn(self, samples: Samples) -> Batch:
        """Pads the tokens of a batch of prompts."""
        columns = dict(samples.items())
        ids = columns["prompt_tokens"] if self._known is not None else contexts(self._tokenizer, columns["prompt"])
        return {**columns, **padded_prompts(self._tokenizer, ids)}


class Demonstrations:
    """Pairs of ``prompt`` and ``response`` as batches of token fields, the response ended by the end-of-sequence token.

    Batches hold ``prompt``, ``response``, ``tokens``, ``attention_mask`` and ``response_mask`` (see
    :mod:`chatlearn.types`).

    Args:
        pairs: a sequence of dicts.
        tokenizer: of Hugging Face format.
    """

    def __init__(self, pairs: Sequence[dict[str, Any]], tokenizer: Any) -> None:
        self._pairs, self._tokenizer = pairs, tokenizer

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pairs[index]
        if (
            not isinstance(pair, dict)
            or not isinstance(pair.get("prompt"), str)
            or not isinstance(pair.get("response"), str)
        ):
            raise DataError(f'a demonstration is a dict {{"prompt": str, "response": str}}, got {pair!r}')
        return pair

    def collate_fn(self, samples: Samples) -> Batch:
        """Tokenizes a batch of pairs."""
        eos, pad_id = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        answers = self._tokenizer(samples["response"], add_special_tokens=False)["input_ids"]
        prompts, prompt_mask = padded(contexts(self._tokenizer, samples["prompt"]), pad_id, side="left")
        responses, response_mask = padded([[*ids, eos] for ids in answers], pad_id, side="right")
        return {
            **{key: samples[key] for key in ("prompt", "response")},
            "tokens": torch.cat([prompts, responses], 1),
            "attention_mask": torch.cat([prompt_mask, response_mask], 1),
            "response_mask": torch.cat([torch.zeros_like(prompt_mask), response_mask], 1).float(),
        }


def prompt_columns(prompt: Any, index: int) -> dict[str, Any]:
    """A prompt as the dict of its columns.

    Raises:
        DataError: it is neither text nor a dict with a text under ``prompt``.
    """
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, dict) and isinstance(prompt.get("prompt"), str):
        return prompt
    raise DataError(f'prompt {index}: a prompt is a str, or a dict with a str under "prompt", got {prompt!r}')


def padded_prompts(tokenizer: Any, ids: Sequence[Sequence[int]]) -> Batch:
    """``prompt_tokens`` and ``prompt_mask`` of token ids, padded on the left."""
    tokens, mask = padded(ids, tokenizer.pad_token_id, side="left")
    return {"prompt_tokens": tokens, "prompt_mask": mask}


def contexts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The token ids of each prompt.

    Raises:
        DataError: a prompt has none, so that there is nothing to predict a first token from.
    """
    ids = tokenizer(prompts)["input_ids"]
    if not all(ids):
        prompt = next(prompt for prompt, tokens in zip(prompts, ids, strict=True) if not tokens)
        raise DataError(
            f"the prompt {prompt!r} gives no tokens, so there is nothing to predict a first token from. Leave it out, "
            f"or use a tokenizer that begins every text with a token"
        )
    return ids


def padded(sequences: Sequence[Sequence[int]], value: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths as one tensor, and which entries are real: both ``[N, longest]`` int64."""
    lengths = np.array([len(sequence) for sequence in sequences])
    columns = np.arange(lengths.max(initial=0))
    mask = columns < lengths[:, None] if side == "right" else columns >= (len(columns) - lengths)[:, None]
    tokens = np.full(mask.shape, value, dtype=np.int64)
    tokens[mask] = np.fromiter(itertools.chain.from_iterable(sequences), dtype=np.int64, count=lengths.sum())
    return torch.from_numpy(tokens), torch.from_numpy(mask.astype(np.int64))
