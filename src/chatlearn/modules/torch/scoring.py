"""Log-probabilities and values of given tokens, computed over the columns that hold responses only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatlearn.algorithms.logprobs import token_logprobs
from chatlearn.types import Batch


@dataclass(frozen=True)
class Window:
    """The columns ``start`` to ``stop`` of a batch: all response tokens of all rows, and what is needed to score them.

    Token t is drawn from the model's output at t - 1, so the inputs are the tokens before ``stop - 1`` and the
    outputs of the columns ``start - 1`` to ``stop - 1`` are kept.
    """

    start: int
    stop: int
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    targets: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Window:
        """The window of a batch with ``tokens``, ``attention_mask`` and ``response_mask``; columns that are padding
        in every row are left out.
        """
        mask = batch["response_mask"]
        attended = batch["attention_mask"].any(0).nonzero()
        columns = mask.any(0).nonzero()
        first = int(attended[0]) if len(attended) else 0
        start, stop = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (mask.shape[1] - 1, mask.shape[1])
        start = max(start, 1)
        attention_mask = batch["attention_mask"][:, first : stop - 1].to(device)
        return cls(
            start,
            stop,
            batch["tokens"][:, first : stop - 1].to(device),
            attention_mask,
            positions(attention_mask),
            batch["tokens"][:, start:stop].to(device),
            mask[:, start:stop].to(device),
        )

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.stop - self.start

    def cut(self, value_BT: Tensor) -> Tensor:
        """The window's columns of a ``[B, T]`` tensor of the batch."""
        return value_BT[:, self.start : self.stop].to(self.mask.device)

    def spread(self, value: Tensor, width: int) -> Tensor:
        """The window's columns as a ``[B, width]`` float32 tensor of the batch, 0 outside of the responses, on the
        CPU.
        """
        value = torch.where(self.mask.bool(), value, 0).float()
        return torch.nn.functional.pad(value, (self.start, width - self.stop)).cpu()


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids of padded sequences: the first token that is attended to has position 0."""
    return (attention_mask.cumsum(1) - 1).clamp_(min=0)


def policy_logprobs(model: Any, window: Window, temperature: float) -> Tensor:
    """Log-probabilities ``[B, window.width]`` float32 of the window's tokens under a causal language model."""
    logits = model(
        input_ids=window.input_ids,
        attention_mask=window.attention_mask,
        position_ids=window.position_ids,
        use_cache=False,
        logits_to_keep=window.width,
    ).logits
    return token_logprobs(logits, window.targets, temperature=temperature)


def state_values(model: Any, window: Window) -> Tensor:
    """Values ``[B, window.width]`` float32 of the states in which the window's tokens were chosen."""
    return model(window.input_ids, window.attention_mask, window.position_ids)[:, -window.width :]
