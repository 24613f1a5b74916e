"""Batches as they enter and leave a step: what a step owns of its inputs, and the form in which outputs travel."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from chatlearn.errors import DataError, StepError
from chatlearn.guards import is_dict, is_instance, kind_of
from chatlearn.types import Batch, Column, num_rows

Returned: TypeAlias = "Column | tuple[Any, ...] | float | str"
"""What a step may have returned, and put under a key of it: some makes a batch, the rest is refused."""

_ALIGNMENT = 64
"""Bytes; that of torch's own memory."""

_WITHOUT_MEMORY = frozenset({str, bytes, int, float, bool, type(None)})
"""Types of entries that nobody can change; a list of these alone is told at once."""

_MAX_KNOWN = 1024
"""Returned tensors that are remembered at least, before those that nobody holds are forgotten."""


def normalise(batch: Mapping[Any, Returned], rows: int | None = None, path: str = "") -> Batch:
    """Brings a batch into the form that travels: tensors detached, contiguous, aligned to 64 bytes (on which the bits
    of a matrix product depend), without conjugate or negative bit, and outside of inference mode; arrays contiguous.

    Args:
        batch: what a step or a collation returned.
        rows: the number of rows that every value must have; ``None`` takes the first value's.
        path: key path of a nested dict, for errors.

    Raises:
        DataError: a key that is no string, a value that has no rows, or another number of rows.
    """
    result: Batch = {}
    for key, value in batch.items():
        name = f"{path}{key}"
        if not isinstance(key, str):
            raise DataError(f"the key {key!r} is not a string. Give every value of a batch a name.")
        if value is None:  # stands for the whole batch, and has no rows
            result[key] = None
            continue
        if isinstance(value, dict):
            result[key] = normalise(value, rows, f"{name}.")
            rows = num_rows(value) if rows is None and value else rows
            continue
        if isinstance(value, torch.Tensor):
            value = _normal_tensor(value, name)
        elif isinstance(value, np.ndarray):
            value = np.array(value, order="C", subok=True) if value.ndim else value  # a module may fill it again
        elif isinstance(value, (list, tuple)):
            value = _normal_list(value, name)
        if not isinstance(value, (torch.Tensor, np.ndarray, list)) or (not isinstance(value, list) and value.ndim == 0):
            raise DataError(
                f"{name!r} is {type(value).__name__} without rows; values are tensors or arrays with the samples "
                f"first, or lists with one entry per sample. A number that describes the whole batch belongs into "
                f"self.log({name!r}, …)."
            )
        rows = len(value) if rows is None else rows
        if len(value) != rows:
            raise DataError(
                f"{name!r} has {len(value)} rows where {rows} are expected; every value has one row per sample of the "
                f"batch, in the same order."
            )
        result[key] = value
    return result


def _normal_list(entries: list[Any] | tuple[Any, ...], name: str) -> list[Any]:
    if _WITHOUT_MEMORY.issuperset(map(type, entries)):
        return list(entries)
    return [_normal_tensor(entry, name) if is_instance(entry, torch.Tensor) else entry for entry in entries]


def _normal_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.layout != torch.strided:
        raise DataError(
            f"{name!r} is a tensor of layout {tensor.layout}; only dense ones travel. Return {name}.to_dense()."
        )
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    tensor = tensor.detach().contiguous()
    storage = tensor.untyped_storage()
    # part of a larger memory, or somebody else's (``torch.from_numpy``): others may write there
    is_foreign = storage.nbytes() != tensor.nbytes or not storage.resizable()
    return tensor.clone() if is_foreign or tensor.is_inference() or tensor.data_ptr() % _ALIGNMENT else tensor


class ReturnedTensors:
    """The tensors that a replica has returned and that somebody still holds, to notice a buffer that is filled anew."""

    def __init__(self) -> None:
        self._known: dict[int, _Returned] = {}
        self._limit = _MAX_KNOWN

    def overwritten(self, batch: Batch) -> str | None:
        """Takes a normalised batch that is about to be returned.

        Returns:
            The key of a tensor whose memory was returned before and has been written to since then, while the earlier
            tensor is still held; ``None`` if there is none. Writes through ``.data`` and ``.numpy()`` stay unseen.
        """
        known = self._known
        for key, tensor in tensors_of(batch):
            address, version, reference = tensor.data_ptr(), tensor._version, weakref.ref(tensor)
            earlier = known.get(address)
            if earlier is None:
                if address:  # a tensor without elements has none
                    known[address] = _Returned(reference, reference, version)
            elif earlier.version == version:
                # of many that are one memory unchanged, the first and the last: one of them is held for longest
                if earlier.first() is None:
                    earlier.first = earlier.last
                earlier.last = reference
            elif earlier.changed():
                return key
            else:
                known[address] = _Returned(reference, reference, version)
        if len(known) > self._limit:
            self._known = {address: entry for address, entry in known.items() if entry.is_held()}
            self._limit = max(_MAX_KNOWN, 2 * len(self._known))
        return None


@dataclass(slots=True)
class _Returned:
    """Tensors that were returned at one address, and the version of their memory then."""

    first: weakref.ref[torch.Tensor]
    last: weakref.ref[torch.Tensor]
    version: int

    def is_held(self) -> bool:
        return self.first() is not None or self.last() is not None

    def changed(self) -> bool:
        tensor = self.first()
        tensor = self.last() if tensor is None else tensor
        return tensor is not None and tensor._version != self.version


def own(data: Batch | list[Batch], copied: bool, borrowed: bool = False) -> Batch | list[Batch]:
    """A step's own dicts and lists around shared memory: tensors as aliases (``requires_grad_()`` and ``.grad`` stay
    with the step, writes are seen by all), arrays as read-only views; ``copied``: all is its own.

    So are lists, dicts and tuples that stand in a list for one sample, unless they are ``borrowed``; objects of other
    kinds are shared.
    """
    if copied:
        return copy.deepcopy(data)
    if isinstance(data, list):
        return [_own_batch(batch, borrowed) for batch in data]
    return _own_batch(data, borrowed)


def _own_batch(batch: Batch, borrowed: bool) -> Batch:
    return {key: _own_value(value, borrowed) for key, value in batch.items()}


def _own_value(value: Column, borrowed: bool) -> Column:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return _own_batch(value, borrowed)
    if isinstance(value, list):
        as_it_is = borrowed or _WITHOUT_MEMORY.issuperset(map(type, value))
        return value.copy() if as_it_is else [own_entry(entry) for entry in value]
    return _read_only(value) if isinstance(value, np.ndarray) else value


def own_entry(entry: Any) -> Any:
    """A step's own lists, dicts and tuples around shared memory; objects of other kinds are shared."""
    kind = kind_of(entry)
    if kind in _WITHOUT_MEMORY:
        return entry
    if kind is dict:
        copied = entry.copy()
        for key, part in entry.items():
            if type(part) not in _WITHOUT_MEMORY:
                copied[key] = own_entry(part)
        return copied
    if kind is list or kind is tuple:
        parts: list[Any] = list(entry) if _WITHOUT_MEMORY.issuperset(map(type, entry)) else list(map(own_entry, entry))
        return parts if kind is list else tuple(parts)
    if is_instance(entry, torch.Tensor):
        return entry.detach()
    return _read_only(entry) if isinstance(entry, np.ndarray) else entry


def _read_only(array: Any) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def tensors_of(data: Batch | list[Batch]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a batch, or of a list of micro-batches, with their key paths (those in a list have the list's)."""
    value: Column
    for batch in data if isinstance(data, list) else [data]:
        for key, value in batch.items():
            if isinstance(value, torch.Tensor):
                yield key, value
            elif isinstance(value, dict):
                yield from ((f"{key}.{name}", tensor) for name, tensor in tensors_of(value))
            elif isinstance(value, list) and not _WITHOUT_MEMORY.issuperset(map(type, value)):
                yield from ((key, entry) for entry in value if isinstance(entry, torch.Tensor))


def taken_source_rows(
    output: Any, function: Callable[..., Any], rows: int, place: str
) -> tuple[Any, tuple[int, ...] | None]:
    """The output of a step without ``source_rows``, and these: ``None`` for a step that keeps its rows.

    Raises:
        StepError: they are missing, or no rows of the input.
    """
    expands, filters = getattr(function, "_chatlearn_expands", None), getattr(function, "_chatlearn_filters", False)
    if (expands is None and not filters) or not is_dict(output):
        return output, None
    if "source_rows" not in output:
        if expands is None or expands is True:
            raise StepError(
                f"{place} {'filters' if filters else 'expands'}, so its output has to hold 'source_rows': for each of "
                f"its rows the number of the input row that it comes from."
            )
        return output, tuple(row for row in range(rows) for _ in range(expands))
    output = dict(output)
    given = output.pop("source_rows")
    found = tuple(int(row) for row in (given.tolist() if hasattr(given, "tolist") else given))
    if not all(0 <= row < rows for row in found) or (filters and len(set(found)) != len(found)):
        raise StepError(f"{place}: source_rows has {list(found)[:8]}, but the input has the rows 0 to {rows - 1}.")
    return output, found
