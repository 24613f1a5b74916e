"""Values of batches as plain trees, for files that are never unpickled.

A tree consists of dicts with string keys, lists, tensors, arrays of numbers, str, int, float, bool and None. Every dict
in it is one that :func:`to_plain` made: it has a single key, which says what stands there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from chatlearn.errors import DataError
from chatlearn.guards import is_dict, is_instance, is_list, kind_of


def to_plain(value: Any, path: str) -> Any:
    """A value as a plain tree: tensors, arrays of any dtype but structured ones, NumPy's scalars, bytes, numbers, text,
    and lists, tuples and dicts of these.

    Args:
        value: of a batch.
        path: where it stands, for the error.

    Raises:
        DataError: a value of another type is in it.
    """
    if value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str):
        return value
    if is_instance(value, np.ndarray):
        return _array_to_plain(value, path)
    if is_instance(value, np.generic):
        return {"scalar": _array_to_plain(np.asarray(value), path)}
    kind = kind_of(value)
    if kind in (list, tuple):
        parts = [to_plain(part, f"{path}[{number}]") for number, part in enumerate(value)]
        return parts if kind is list else {"tuple": parts}
    if kind is dict:
        pairs = [(to_plain(key, path), to_plain(part, f"{path}[{key!r}]")) for key, part in value.items()]
        return {"dict": [list(pair) for pair in pairs]}
    if kind is bytes:
        return {"bytes": np.frombuffer(value, dtype=np.uint8)}
    raise _unknown(kind.__name__, path)


def from_plain(tree: Any) -> Any:
    """The value that :func:`to_plain` got; arrays own their memory."""
    if is_list(tree):
        return [from_plain(part) for part in tree]
    if not is_dict(tree):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tuple":
        return tuple(from_plain(part) for part in content)
    if kind == "dict":
        return {from_plain(key): from_plain(part) for key, part in content}
    if kind == "scalar":
        return from_plain(content)[()]
    if kind == "bytes":
        return content.tobytes()
    if kind == "objects":
        shape: list[int]
        entries: list[Any]
        shape, entries = content
        array = np.empty(len(entries), dtype=object)
        for number, entry in enumerate(entries):
            array[number] = from_plain(entry)
        return array.reshape(shape)
    assert kind == "raw", kind
    dtype, shape, raw = content
    array = np.zeros(shape, dtype=dtype)
    array.reshape(-1).view(np.uint8)[:] = raw
    return array


def _array_to_plain(array: np.ndarray, path: str) -> Any:
    kind = array.dtype.kind
    if kind == "O":
        return {"objects": [list(array.shape), [to_plain(e, f"{path}[{i}]") for i, e in enumerate(array.ravel())]]}
    if array.dtype.isnative and (kind == "b" or array.dtype == np.uint8 or (kind in "if" and array.itemsize <= 8)):
        return array  # the dtypes that tensors have too
    if kind == "V":
        raise _unknown(f"an array of dtype {array.dtype}", path)
    raw = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return {"raw": [array.dtype.str, list(array.shape), raw]}


def _unknown(what: str, path: str) -> DataError:
    return DataError(
        f"{path} is {what}, which a file can't hold. Give tensors, arrays, numbers, text, and lists, tuples and dicts "
        f"of these."
    )
