"""The response tokens of a batch, and the tokens before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatlearn.errors import DataError
from chatlearn.types import Batch


@dataclass(frozen=True)
class Window:
    """The columns ``start`` to ``stop`` of a batch: all response tokens of all rows, and what is needed to score them.

    Token t is drawn from the model's output at the token before it. So the inputs of a row are its tokens before the
    last response token, padding left out; a row without response tokens has none.

    Shape legend: ``B`` rows, ``W`` columns of the window, ``N`` input tokens of all rows one after another, ``M``
    response tokens of all rows one after another.

    Attributes:
        start: first column.
        stop: column after the last one.
        mask: ``[B, W]`` float32; 1 on response tokens.
        is_response: ``[B, W]`` bool; the same.
        inputs: ``[N]`` int64, on the CPU.
        lengths: ``[B]`` int64, on the CPU: how many of the inputs are a row's.
        prompts: ``[B]`` int64, on the CPU: how many of a row's inputs stand before its first response token.
        sources: ``[M]`` int64, on the CPU: the place among the inputs of the token before each response token.
        targets: ``[M]`` int64: the response tokens.
    """

    start: int
    stop: int
    mask: Tensor
    is_response: Tensor
    inputs: Tensor
    lengths: Tensor
    prompts: Tensor
    sources: Tensor
    targets: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Window:
        """The window of a batch with ``tokens``, ``attention_mask`` and ``response_mask``.

        Raises:
            DataError: a response token has no token before it.
        """
        tokens, attended = batch["tokens"].cpu(), batch["attention_mask"].cpu().bool()
        mask = batch["response_mask"].cpu()
        responses = mask.bool()
        columns = torch.arange(mask.shape[1])
        last = (responses * columns).amax(1)
        used = responses.any(0).nonzero()
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (mask.shape[1] - 1, mask.shape[1])
        is_input = attended & (columns < last.unsqueeze(1))
        lengths = is_input.sum(1)
        before = attended.cumsum(1)
        before -= attended.long()
        if bool((responses & (before == 0)).any()):
            row = int((responses & (before == 0)).any(1).nonzero()[0])
            raise DataError(
                f"row {row} of a micro-batch of {len(mask)}: its first response token has no token before it, so no "
                f"output of the model belongs to it. Begin its prompt with a token, such as a beginning of sequence."
            )
        offsets = lengths.cumsum(0) - lengths
        sources = (before + (offsets - 1).unsqueeze(1))[responses]
        is_response = responses[:, start:stop]
        return cls(
            start,
            stop,
            mask[:, start:stop].to(device),
            is_response.to(device),
            tokens[is_input],
            lengths,
            (is_input & (responses.cumsum(1) == 0)).sum(1),
            sources,
            tokens[responses].to(device),
        )

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.stop - self.start

    @property
    def row_lengths(self) -> list[int]:
        """``lengths`` as a list."""
        return _ints(self.lengths)

    @property
    def row_prompts(self) -> list[int]:
        """``prompts`` as a list."""
        return _ints(self.prompts)

    def cut(self, value_BT: Tensor) -> Tensor:
        """The window's columns of a ``[B, T]`` tensor of the batch."""
        return value_BT[:, self.start : self.stop].to(self.mask.device)

    def place(self, value_M: Tensor) -> Tensor:
        """One value for each response token as ``[B, W]``, 0 elsewhere; differentiable."""
        return value_M.new_zeros(self.mask.shape).masked_scatter(self.is_response, value_M)

    def spread(self, value: Tensor, width: int) -> Tensor:
        """The window's columns as a ``[B, width]`` float32 tensor of the batch, 0 outside of the responses, on the
        CPU.
        """
        value = torch.where(self.is_response, value, 0).float()
        return torch.nn.functional.pad(value, (self.start, width - self.stop)).cpu()


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids of padded sequences: the first token that is attended to has position 0."""
    return (attention_mask.cumsum(1) - 1).clamp_(min=0)


def _ints(values: Any) -> list[int]:
    return values.tolist()
