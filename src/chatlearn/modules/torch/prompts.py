"""Text prompts as batches of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chatlearn.data.collate import Samples, pad
from chatlearn.errors import DataError
from chatlearn.types import Batch


class TokenizedPrompts:
    """Prompts (strings, or dicts with a key ``prompt`` whose other keys become columns), tokenized batch by batch.

    Batches hold ``prompt`` (list of str), the other columns as lists, ``prompt_tokens`` ``[B, P]`` int64, padded on the left, and
    ``prompt_mask`` ``[B, P]`` int64.

    Args:
        prompts: a sequence of str or dict.
        tokenizer: of Hugging Face format, padding on the left.
    """

    def __init__(self, prompts: Sequence[Any], tokenizer: Any) -> None:
        self._prompts, self._tokenizer = prompts, tokenizer

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return prompt_columns(self._prompts[index])

    def collate_fn(self, samples: Samples) -> Batch:
        """Tokenizes a batch of prompts."""
        encoded = self._tokenizer(samples["prompt"], padding=True, return_tensors="pt")
        return {
            **dict(samples.items()),
            "prompt_tokens": encoded["input_ids"],
            "prompt_mask": encoded["attention_mask"],
        }


class Demonstrations:
    """Pairs of ``prompt`` and ``response`` as batches of token fields, the response ended by the end-of-sequence token.

    Batches hold ``prompt``, ``response``, ``tokens``, ``attention_mask`` and ``response_mask`` (see :mod:`chatlearn.types`).

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
        eos = self._tokenizer.eos_token_id
        prompts = [torch.tensor(ids) for ids in self._tokenizer(samples["prompt"])["input_ids"]]
        answers = self._tokenizer(samples["response"], add_special_tokens=False)["input_ids"]
        responses = [torch.tensor([*ids, eos]) for ids in answers]
        pad_id = self._tokenizer.pad_token_id
        return {
            **{key: samples[key] for key in ("prompt", "response")},
            "tokens": torch.cat([pad(prompts, value=pad_id, side="left"), pad(responses, value=pad_id)], 1),
            "attention_mask": torch.cat([_ones(prompts, "left"), _ones(responses, "right")], 1),
            "response_mask": torch.cat(
                [torch.zeros(len(samples), max(map(len, prompts))), _ones(responses, "right").float()], 1
            ),
        }


def prompt_columns(prompt: Any) -> dict[str, Any]:
    """A prompt as the dict of its columns.

    Raises:
        DataError: it is neither text nor a dict with a text under ``prompt``.
    """
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, dict) and isinstance(prompt.get("prompt"), str):
        return prompt
    raise DataError(f'a prompt is a str, or a dict with a str under "prompt", got {prompt!r}')


def _ones(sequences: Sequence[torch.Tensor], side: str) -> torch.Tensor:
    return pad([torch.ones_like(sequence) for sequence in sequences], side=side)
