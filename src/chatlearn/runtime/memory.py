"""Tensors and arrays as bytes and back, without a copy where the memory can be shared."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from chatlearn.errors import DataError
from chatlearn.guards import is_instance

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
"""A 1-d array of uint8."""

ALIGNMENT = 64
"""Bytes; that of torch's own memory. The bits of a matrix product depend on it."""

_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def has_raw_bytes(tensor: torch.Tensor) -> bool:
    """Whether dtype, shape and bytes are all there is to the numbers of a tensor."""
    return not (tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def has_raw_dtype(array: np.ndarray[Any, Any]) -> bool:
    """Whether dtype, shape and bytes are all there is to an array: one of bools, numbers, times, or text."""
    return array.dtype.kind in "biufcMmUS" and array.itemsize > 0


def is_number(value: Any) -> bool:
    """Whether a value is a bool, a number or a time of numpy."""
    return is_instance(value, np.generic) and type(value) is value.dtype.type and value.dtype.kind in "biufcMm"


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous, with its numbers as they are; the very same one where it is like that."""
    if tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def bytes_of(value: torch.Tensor | np.ndarray[Any, Any]) -> Bytes:
    """The memory of a :func:`flattened` tensor or of an array (copied only if it is not contiguous)."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    flat = value.detach().as_strided((value.numel(),), (1,))  # one element may have any stride
    return flat.view(torch.uint8).numpy()


def copied_bytes(tensor: torch.Tensor) -> bytes:
    """A copy of the bytes of a :func:`flattened` tensor; for small ones far faster than by way of an array."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def tensor_from(bits: bytes, dtype: str, *shape: int) -> torch.Tensor:
    """A tensor with memory of its own."""
    tensor = torch.empty(shape, dtype=_dtype(dtype), device="cpu")
    assert tensor.nbytes == len(bits), (dtype, shape, len(bits))
    ctypes.memmove(tensor.data_ptr(), bits, len(bits))
    return tensor


def array_from(bits: bytes, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """An array with memory of its own."""
    return np.frombuffer(bytearray(bits), dtype=dtype).reshape(shape) if bits else np.empty(shape, dtype=dtype)


def array_of_objects(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """An array of any objects."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # numpy would take lists of one length for rows
        array[i] = value
    return array.reshape(shape)


def tensor_over(buffer: Bytes, dtype: str, *shape: int) -> torch.Tensor:
    """A tensor over the memory of ``buffer``, or over an aligned copy of it."""
    return torch.frombuffer(_writeable(_aligned(buffer)), dtype=_dtype(dtype)).reshape(shape)


def array_over(buffer: Bytes, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """A read-only array over the memory of ``buffer``, or over an aligned copy of it."""
    array = _aligned(buffer).view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


class _Alias:
    """The memory of an array that may be read-only, as one that says it is not; keeps it alive."""

    def __init__(self, array: Bytes) -> None:
        self.owner = array
        memory = (_address(array), False)
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": array.shape, "data": memory}


def _writeable(array: Bytes) -> Bytes:
    """The same memory as a writeable array: torch knows no read-only tensors, and warns of each array that is."""
    return array if array.flags.writeable else np.asarray(_Alias(array))


def _aligned(buffer: Bytes) -> Bytes:
    if _address(buffer) % ALIGNMENT == 0:
        return buffer
    copy = torch.empty(len(buffer), dtype=torch.uint8, device="cpu").numpy()
    copy[:] = buffer
    return copy


def _address(array: Bytes) -> int:
    return array.__array_interface__["data"][0]


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise DataError(f"torch {torch.__version__} has no {name}: a tensor comes from a process with a newer one.")
    return _DTYPES[name]
