"""Batches put together and taken apart: samples to a batch, rows of a batch, batches one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chatlearn.errors import DataError
from chatlearn.types import Batch, num_rows


class Samples(list[dict[str, Any]]):
    """A list of samples that also reads like a dict of columns: ``keys()``, ``values()``, ``items()`` and
    ``samples["key"]``.

    A ``collate_fn`` may therefore be written over samples (as in PyTorch) or over columns.
    """

    def keys(self) -> list[str]:
        """Keys of the first sample."""
        return list(self[0])

    def values(self) -> list[list[Any]]:
        """One list per key."""
        return [self[key] for key in self.keys()]

    def items(self) -> list[tuple[str, list[Any]]]:
        """Pairs of key and column."""
        return [(key, self[key]) for key in self.keys()]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return [sample[index] for sample in self]
        return super().__getitem__(index)


def pad(
    sequences: Sequence[torch.Tensor], *, value: float = 0, side: str = "right", length: int | None = None
) -> torch.Tensor:
    """Stacks sequences of different lengths.

    Args:
        sequences: N tensors ``[L_i, …]`` of one dtype and equal trailing dimensions.
        value: what padding holds.
        side: ``right`` or ``left``: where the padding goes.
        length: of the result; the longest sequence's if ``None``.

    Returns:
        ``[N, length, …]``.

    Raises:
        DataError: no sequences, an unknown side, or a sequence longer than ``length``.
    """
    if not sequences:
        raise DataError("pad() got no sequences; it needs at least one to know dtype and shape.")
    if side not in ("left", "right"):
        raise DataError(f"pad(side={side!r}): padding goes 'left' or 'right'.")
    longest = max(len(sequence) for sequence in sequences)
    length = longest if length is None else length
    if longest > length:
        raise DataError(f"pad(length={length}): a sequence has {longest} elements. Cut it first, or raise the length.")
    first = sequences[0]
    result = first.new_full((len(sequences), length, *first.shape[1:]), value)
    for row, sequence in zip(result, sequences, strict=True):
        start = length - len(sequence) if side == "left" else 0
        row[start : start + len(sequence)] = sequence
    return result


def split(batch: Batch, size: int) -> list[Batch]:
    """Cuts a batch into pieces of ``size`` rows; the last one may be smaller. Tensors become views.

    ``merge(split(batch, size))`` is ``batch``.
    """
    rows = num_rows(batch)
    return [batch] if rows <= size else [select(batch, range(i, min(i + size, rows))) for i in range(0, rows, size)]


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows, in the given order; for a ``range`` of step 1, tensors and arrays are views."""
    return {key: _select(value, rows) for key, value in batch.items()}


def merge(batches: Sequence[Batch], padding: float = 0) -> Batch:
    """Batches one after another.

    Tensors and arrays whose dimensions beyond the first differ are padded on the right of each such dimension.

    Args:
        batches: with the same keys.
        padding: what the padding holds.

    Raises:
        DataError: batches with different keys or with values of different kinds.
    """
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return {}
    first = batches[0]
    for batch in batches[1:]:
        if batch.keys() != first.keys():
            odd = sorted(set(first) ^ set(batch))
            raise DataError(f"batches of one flow have different keys: {', '.join(odd)} is not in all of them.")
    return {key: _concatenate(key, [batch[key] for batch in batches], padding) for key in first}


def _select(value: Any, rows: Sequence[int]) -> Any:
    if isinstance(value, dict):
        return select(value, rows)
    if isinstance(rows, range) and rows.step == 1:
        return value[rows.start : rows.stop]
    if isinstance(value, list):
        return [value[row] for row in rows]
    if isinstance(value, torch.Tensor):
        return value[torch.as_tensor(rows, dtype=torch.long, device=value.device)]
    return value[np.asarray(rows, dtype=np.intp)]


def _concatenate(key: str, values: list[Any], padding: float) -> Any:
    first = values[0]
    kinds = {kind for value in values for kind in (torch.Tensor, np.ndarray, list, dict) if isinstance(value, kind)}
    if len(kinds) != 1:
        raise DataError(
            f"{key!r} is {' and '.join(sorted(k.__name__ for k in kinds))} in batches that belong together."
        )
    if isinstance(first, dict):
        return merge(values, padding)
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    if len({value.ndim for value in values}) != 1:
        raise DataError(
            f"{key!r} has {' and '.join(str(list(v.shape)) for v in values[:2])} in batches that belong together."
        )
    if len({value.shape[1:] for value in values}) > 1:
        widths = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
        values = [_widened(value, widths, padding) for value in values]
    return torch.cat(values) if isinstance(first, torch.Tensor) else np.concatenate(values)


def _widened(value: Any, widths: list[int], padding: float) -> Any:
    if isinstance(value, torch.Tensor):
        amounts = [
            n
            for width, size in zip(reversed(widths), reversed(value.shape[1:]), strict=True)
            for n in (0, width - size)
        ]
        return torch.nn.functional.pad(value, amounts, value=padding)
    amounts = [(0, 0), *((0, width - size) for width, size in zip(widths, value.shape[1:], strict=True))]
    return np.pad(value, amounts, constant_values=padding)
