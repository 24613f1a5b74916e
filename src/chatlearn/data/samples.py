"""Samples: the rows of batches as dicts that know where they come from, and batches made of them again.

Values that nobody changed come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from chatlearn.data.collate import merge
from chatlearn.data.padding import Padding
from chatlearn.errors import DataError
from chatlearn.guards import kind_of
from chatlearn.types import Batch, Column, SampleIds

Kind: TypeAlias = "type[Any] | np.dtype[Any] | dict[str, Any] | None"
"""What a column is: ``torch.Tensor``, ``list`` or ``NoneType``; a dtype for an array of one dimension, ``np.ndarray``
for one of more; :data:`Kinds` for a nested dict; ``None`` where it is not known."""

Kinds: TypeAlias = dict[str, Kind]
"""What the columns of a batch are, by key."""


class Sample(dict[str, Any]):
    """One row of a batch, which knows where it comes from.

    ``sample | {"rewards": …}`` and ``sample.copy()`` are samples with the same ids; ``dict(sample)`` and
    ``{**sample}`` are not.

    Attributes:
        sample_id: the sampler's position.
        group_id: samples that answer the same prompt instance share one.
        weight_version: of the rollout weights that made it.
        episode: number of its episode, from 0.
        rollout_id: of the sample that a step made it of; ``None`` where it is a rollout of its own.
        kinds: what the columns of its batch are.
    """

    __slots__ = ("episode", "group_id", "kinds", "rollout_id", "sample_id", "weight_version")

    sample_id: int
    group_id: int
    weight_version: int
    episode: int
    rollout_id: int | None
    kinds: Kinds

    def copy(self) -> Sample:
        """The same values in a sample of its own."""
        return self._with(self)

    def __or__(self, other: Any) -> Any:
        return self._with({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return self._with({**other, **self}) if isinstance(other, Mapping) else NotImplemented

    def _with(self, values: Mapping[str, Any]) -> Sample:
        other = Sample(values)
        for name in Sample.__slots__:
            setattr(other, name, getattr(self, name))
        return other


def samples_of(episode: int, batch: Batch, ids: SampleIds) -> Iterator[Sample]:
    """The rows of a batch. Tensors are views of its own; arrays are views that can't be written to."""
    kinds, rollouts = _kinds(batch), ids.rollouts
    for row, values in enumerate(_rows(batch, len(ids))):
        sample = Sample(values)
        sample.sample_id, sample.group_id = ids.sample_ids[row], ids.group_ids[row]
        sample.weight_version, sample.episode = ids.weight_version, episode
        sample.rollout_id = None if rollouts is None else rollouts[row]
        sample.kinds = kinds
        yield sample


def batches(
    samples: Sequence[Sample], rules: Mapping[str, Padding] | None = None, size: int | None = None
) -> Iterator[tuple[Batch, SampleIds]]:
    """Samples as batches, in their order.

    A column is again what it was in the batch that a sample comes from. Under a key that is new there, tensors and
    arrays are stacked, and all else becomes a list with one entry per sample.

    Args:
        samples: with the same keys.
        rules: padding of values of different widths, by key, as of :func:`chatlearn.data.collate.merge`.
        size: the most rows of a batch (``None``: any number). A batch ends early where the next sample was made by
            other weights, since :class:`~chatlearn.types.SampleIds` has one version for all rows.

    Raises:
        DataError: a value does not fit into its column.
    """
    assert size is None or size > 0, size
    start = 0
    for stop in range(1, len(samples) + 1):
        ends = stop == len(samples) or samples[stop].weight_version != samples[start].weight_version
        if ends or stop - start == size:
            chosen = samples[start:stop]
            yield merge(list(_pieces(chosen)), rules), _ids(chosen)
            start = stop


def _ids(samples: Sequence[Sample]) -> SampleIds:
    own = all(sample.rollout_id is None for sample in samples)
    rollouts = [sample.sample_id if sample.rollout_id is None else sample.rollout_id for sample in samples]
    return SampleIds(
        tuple([sample.sample_id for sample in samples]),
        tuple([sample.group_id for sample in samples]),
        samples[0].weight_version,
        None if own else tuple(rollouts),
    )


def _kinds(batch: Batch) -> Kinds:
    return {key: _kind(value) for key, value in batch.items()}


def _kind(value: Column) -> Kind:
    if isinstance(value, dict):
        return _kinds(value)
    if isinstance(value, np.ndarray):
        return value.dtype if value.ndim == 1 else np.ndarray
    return torch.Tensor if isinstance(value, torch.Tensor) else kind_of(value)


def _rows(batch: Batch, count: int) -> list[dict[str, Any]]:
    if not batch:
        return [{} for _ in range(count)]
    columns = [_entries(value, count) for value in batch.values()]
    return [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]


def _entries(value: Column, count: int) -> Sequence[Any]:
    if value is None:
        return [None] * count
    if isinstance(value, dict):
        return _rows(value, count)
    if isinstance(value, torch.Tensor):
        return value.unbind()
    if isinstance(value, np.ndarray):
        return list(_read_only(value))
    return [_read_only(entry) if isinstance(entry, np.ndarray) else entry for entry in value]


def _read_only(array: Any) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _pieces(samples: Sequence[Sample]) -> Iterator[Batch]:
    """Batches of neighbouring samples whose values stack without padding."""
    start = 0
    form = _form(samples[0], samples[0].kinds)
    for stop in range(1, len(samples) + 1):
        following = samples[stop] if stop < len(samples) else None
        kinds = samples[start].kinds
        if following is None or following.kinds != kinds or _form(following, kinds) != form:
            yield _columns(samples[start:stop], kinds, samples[start:stop])
            if following is not None:
                start, form = stop, _form(following, following.kinds)


def _form(values: Mapping[str, Column], kinds: Kinds) -> dict[str, Any]:
    """What has to be equal for values to stack."""
    form: dict[str, Any] = {}
    for key, value in values.items():
        kind = kinds.get(key)
        if isinstance(kind, dict) and isinstance(value, Mapping):
            form[key] = _form(value, kind)
        elif kind is list or isinstance(kind, np.dtype):
            form[key] = None
        else:
            form[key] = (value.shape, value.dtype) if isinstance(value, (torch.Tensor, np.ndarray)) else type(value)
    return form


def _columns(rows: Sequence[Mapping[str, Any]], kinds: Kinds, samples: Sequence[Sample], path: str = "") -> Batch:
    """Rows of one form as a batch."""
    batch: Batch = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        kind = kinds.get(key)
        if kind is type(None) and first is not None:
            kind = None  # a value where there was none is a new one
        if isinstance(kind, dict) and isinstance(first, Mapping):
            batch[key] = _columns(values, kind, samples, f"{path}{key}.")
        elif isinstance(kind, np.dtype):
            batch[key] = _array(values, kind, samples, path + key)
        elif isinstance(first, torch.Tensor) and kind in (torch.Tensor, None):
            batch[key] = torch.stack(values)
        elif isinstance(first, np.ndarray) and kind in (np.ndarray, None):
            batch[key] = np.stack(values)
        elif kind is type(None):
            batch[key] = None
        elif kind is list or kind is None:
            batch[key] = values
        else:
            raise _misfit(path + key, first, kind, samples[0])
    return batch


def _array(values: list[Any], dtype: np.dtype, samples: Sequence[Sample], path: str) -> np.ndarray:
    """An array of one dimension, of this dtype unless that would change a value: numbers stay among numbers, text among
    text.
    """
    if dtype.kind == "O":
        array = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            array[row] = value
        return array
    if all(type(value) is dtype.type for value in values) and dtype.kind in "biufc":
        return np.array(values, dtype=dtype)
    for value, sample in zip(values, samples, strict=True):
        kind = "O" if isinstance(value, torch.Tensor) or np.ndim(value) else np.asarray(value).dtype.kind
        if kind != dtype.kind and not (kind in "biufc" and dtype.kind in "biufc"):
            raise _misfit(path, value, dtype, sample)
        # a number of Python takes the dtype of the array that it meets, if that can hold it
        weak = type(value) in (bool, int, float, complex)
        dtype = np.result_type(dtype, value if weak else np.asarray(value).dtype)
    return np.array(values, dtype=dtype)


def _misfit(path: str, value: Any, kind: Any, sample: Sample) -> DataError:
    names = {torch.Tensor: "a tensor", np.ndarray: "an array"}
    column = "a dict" if isinstance(kind, dict) else names.get(kind, "an array")
    given = "None" if value is None else type(value).__name__
    example = f"torch.tensor({value!r})" if type(value) in (bool, int, float) and kind is torch.Tensor else column
    return DataError(
        f"sample {sample.sample_id} of episode {sample.episode}: {path!r} is {given}, but {column} in the batch that "
        f"the sample comes from. Give {example}, or use another key."
    )
