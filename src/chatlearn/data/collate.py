"""Batches put together and taken apart: samples to a batch, rows of a batch, batches one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch

from chatlearn.data.padding import SIDES, Padding, check_holds, widened
from chatlearn.errors import DataError
from chatlearn.guards import is_mapping, kind_of
from chatlearn.types import Batch, Column, num_rows


class Samples(list[dict[str, Any]]):
    """A list of samples that also reads like a dict of columns: ``keys()``, ``values()``, ``items()`` and
    ``samples["key"]``.

    A ``collate_fn`` may therefore be written over samples (as in PyTorch) or over columns.

    Args:
        samples: dicts.
        names: words for each sample, for errors; left out, its number in the list.
    """

    def __init__(self, samples: Iterable[Any] = (), names: Sequence[str] | None = None) -> None:
        super().__init__(samples)
        self.names = [f"number {number}" for number in range(len(self))] if names is None else names

    def keys(self) -> list[str]:
        """The keys that all samples have.

        Raises:
            DataError: their keys differ, or one is no dict.
        """
        first: Any = self[0] if self else {}
        for name, sample in zip(self.names, self, strict=True):
            if not is_mapping(sample):
                raise DataError(
                    f"the samples of a batch are dicts, but {name} is {type(sample).__name__}. Let __getitem__ return "
                    f"a dict for every index."
                )
            if sample.keys() != first.keys():
                odd = ", ".join(sorted(map(str, set(first) ^ set(sample))))
                raise DataError(
                    f"the samples of a batch have different keys: {odd} is not in all of them ({self.names[0]} has "
                    f"{_listed(first)}; {name} has {_listed(sample)}). Give every record the same keys, None where "
                    f"there is no value."
                )
        return list(first)

    def values(self) -> list[list[Any]]:
        """One list per key."""
        return [self[key] for key in self.keys()]

    def items(self) -> list[tuple[str, list[Any]]]:
        """Pairs of key and column."""
        return [(key, self[key]) for key in self.keys()]

    def columns(self) -> Batch:
        """One list per key, of samples that all have the same keys.

        Raises:
            DataError: they have not.
        """
        return dict(self.items())

    def __getitem__(self, index: str | SupportsIndex | slice) -> Any:
        if isinstance(index, str):
            return [sample[index] for sample in self]
        return super().__getitem__(index)


def _listed(sample: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, sample)) or "none"


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
        DataError: no sequences, an unknown side, a sequence longer than ``length``, or a value that their dtype can't
            hold.
    """
    if not sequences:
        raise DataError("pad() got no sequences; it needs at least one to know dtype and shape.")
    if side not in SIDES:
        raise DataError(f"pad(side={side!r}): padding goes 'left' or 'right'.")
    longest = max(len(sequence) for sequence in sequences)
    length = longest if length is None else length
    if longest > length:
        raise DataError(f"pad(length={length}): a sequence has {longest} elements. Cut it first, or raise the length.")
    first = sequences[0]
    check_holds("pad(): the sequences", first.dtype, value)
    result = first.new_full((len(sequences), length, *first.shape[1:]), value)
    for row, sequence in zip(result, sequences, strict=True):
        start = length - len(sequence) if side == "left" else 0
        row[start : start + len(sequence)] = sequence
    return result


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Samples put together under a token budget, in few batches (first fit decreasing).

    Args:
        lengths: tokens of each sample.
        max_tokens: the most tokens of a batch.

    Returns:
        Indices of the samples of each batch, every sample once; in a batch they ascend, and batches go by their first
        index. ``select(batch, indices)`` takes the rows.

    Raises:
        DataError: a sample is longer than the budget, or a length is negative.
    """
    for index, length in enumerate(lengths):
        if not 0 <= length <= max_tokens:
            raise DataError(
                f"pack(max_tokens={max_tokens}): sample {index} has {length} tokens. Raise the budget, or cut the "
                f"sample first."
            )
    room = np.empty(len(lengths), dtype=np.int64)
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = room[: len(batches)] >= lengths[index]
        place = int(fitting.argmax()) if fitting.any() else len(batches)
        if place == len(batches):
            batches.append([])
            room[place] = max_tokens
        batches[place].append(index)
        room[place] -= lengths[index]
    return sorted(sorted(batch) for batch in batches)


def split(batch: Batch, size: int) -> list[Batch]:
    """Cuts a batch into pieces of ``size`` rows; the last one may be smaller. Tensors become views.

    ``merge(split(batch, size))`` is ``batch``.

    Raises:
        DataError: a value has no rows.
    """
    _check_rows("", batch)
    rows = num_rows(batch)
    return [batch] if rows <= size else [select(batch, range(i, min(i + size, rows))) for i in range(0, rows, size)]


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows, in the given order; for a ``range`` of step 1, tensors and arrays are views. A value that is
    ``None`` stays ``None``.
    """
    return {key: _select(value, rows) for key, value in batch.items()}


def merge(batches: Sequence[Batch], rules: Mapping[str, Padding] | None = None, *, padding: float = 0) -> Batch:
    """Batches one after another.

    Tensors and arrays whose dimensions beyond the first differ are padded by the rule of their key. A value that is
    ``None`` in all batches stays ``None``.

    Args:
        batches: with the same keys.
        rules: by key; keys of nested dicts are dotted paths such as ``"a.b"``.
        padding: what the padding of keys without a rule holds; it goes on the right.

    Raises:
        DataError: batches with different keys or with values of different kinds, or a dtype that can't hold its
            padding.
    """
    return _merge(batches, "", rules or {}, Padding(padding))


def _merge(batches: Sequence[Batch], path: str, rules: Mapping[str, Padding], default: Padding) -> Batch:
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return {}
    first = batches[0]
    for batch in batches[1:]:
        if batch.keys() != first.keys():
            odd = ", ".join(path + key for key in sorted(set(first) ^ set(batch)))
            raise DataError(
                f"batches of one flow have different keys: {odd} is not in all of them. Return the same keys every "
                f"time, None where there is no value."
            )
    return {key: _concatenate(path + key, [batch[key] for batch in batches], rules, default) for key in first}


def _select(value: Column, rows: Sequence[int]) -> Column:
    if value is None:
        return None
    if isinstance(value, dict):
        return select(value, rows)
    if isinstance(rows, range) and rows.step == 1:
        return value[rows.start : rows.stop]
    if isinstance(value, list):
        return [value[row] for row in rows]
    if isinstance(value, torch.Tensor):
        return value[torch.as_tensor(rows, dtype=torch.long, device=value.device)]
    return value[np.asarray(rows, dtype=np.intp)]


KINDS: tuple[type[Any], ...] = (torch.Tensor, np.ndarray, list, dict, type(None))


def _concatenate(path: str, values: list[Any], rules: Mapping[str, Padding], default: Padding) -> Any:
    first = values[0]
    kinds = {next((kind for kind in KINDS if isinstance(value, kind)), kind_of(value)) for value in values}
    if len(kinds) != 1 or not kinds.issubset(KINDS):
        names = sorted("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise DataError(
            f"{path!r} is {' and '.join(names)} in batches that belong together. Values are tensors, arrays or lists "
            f"with one entry per sample, dicts of these, or None, and of one kind in all batches."
        )
    if first is None:
        return None
    if isinstance(first, dict):
        return _merge(values, f"{path}.", rules, default)
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    if len({value.ndim for value in values}) != 1:
        shapes = list(dict.fromkeys(str(list(value.shape)) for value in values))
        raise DataError(
            f"{path!r} has {' and '.join(shapes[:2])} in batches that belong together. Return it with the same number "
            f"of dimensions every time."
        )
    _check_rows(path, first)
    if len({value.shape[1:] for value in values}) > 1:
        values = widened(path, values, rules.get(path, default))
    try:
        return torch.cat(values) if isinstance(first, torch.Tensor) else np.concatenate(values)
    except (TypeError, RuntimeError):
        dtypes = list(dict.fromkeys(str(value.dtype).removeprefix("torch.") for value in values))
        raise DataError(
            f"{path!r} is {' and '.join(dtypes)} in batches that belong together, and no dtype holds both. Return it "
            f"with the same dtype every time."
        ) from None


def _check_rows(path: str, value: Column | float | str) -> None:
    """Raises DataError for what is no column of a batch."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_rows(f"{path}.{key}" if path else str(key), part)
    elif not isinstance(value, KINDS) or getattr(value, "ndim", 1) == 0:
        raise DataError(
            f"{path!r} is {type(value).__name__} without rows; values are tensors or arrays with the samples first, "
            f"lists with one entry per sample, dicts of these, or None."
        )
    elif isinstance(value, torch.Tensor) and value.layout != torch.strided:
        raise DataError(f"{path!r} is a tensor of layout {value.layout}; only dense ones have rows. Call to_dense().")
