"""The wire format: what crosses a process border, as bytes.

Tensors and arrays travel as names, dtypes, shapes and their raw bytes (bfloat16 as bits), plain values as msgpack,
functions, classes and dataclasses by import path. Only what can't be imported again, such as a class of a script's
``__main__``, goes by value through cloudpickle, in memory and never to a file.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import cloudpickle
import msgpack
import numpy as np
import torch

from chatlearn.guards import kind_of

_TENSOR, _ARRAY, _TUPLE, _PATH, _DATACLASS, _VALUE, _RANGE, _DICT = range(1, 9)
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def encode(value: Any) -> bytes:
    """``value`` as bytes. Sharing between parts of it is not kept; a tensor arrives on the CPU."""
    return _pack(_simple(value), default=_extension, strict_types=True, unicode_errors="surrogatepass")


def decode(data: bytes) -> Any:
    """The value that :func:`encode` got; arrays and tensors own their memory and are writeable."""
    return _unpack(data, ext_hook=_restore, strict_map_key=False, unicode_errors="surrogatepass")


# Neither library's functions carry types.
def _pack(value: Any, **options: Any) -> bytes:
    return msgpack.packb(value, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportReturnType]


def _unpack(data: bytes, **options: Any) -> Any:
    return msgpack.unpackb(data, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _pickled(value: Any) -> bytes:
    return cloudpickle.dumps(value)  # pyright: ignore[reportUnknownMemberType]


def _simple(value: Any) -> Any:
    """Plain nested dicts and lists with ``_extension`` left to do the rest; msgpack takes str and int as keys."""
    kind = kind_of(value)
    if kind is dict:
        if all(type(key) in (str, int) for key in value):
            return {key: _simple(part) for key, part in value.items()}
        return msgpack.ExtType(_DICT, encode([[key, part] for key, part in value.items()]))
    if kind is list:
        return [_simple(part) for part in value]
    if kind is bytearray:  # msgpack would make bytes of it
        return msgpack.ExtType(_VALUE, _pickled(value))
    return value


def _extension(value: Any) -> msgpack.ExtType:
    if type(value) is torch.Tensor:
        flat = value.detach().cpu().contiguous().as_strided((value.numel(),), (1,))  # one element may have any stride
        bits = flat.view(torch.uint8).numpy()
        return msgpack.ExtType(_TENSOR, _pack([str(value.dtype), list(value.shape), bits.tobytes()]))
    if type(value) is np.ndarray and value.dtype.kind in "biufc":
        return msgpack.ExtType(_ARRAY, _pack([value.dtype.str, list(value.shape), value.tobytes()]))
    if kind_of(value) is tuple:
        return msgpack.ExtType(_TUPLE, encode(list(value)))
    if type(value) is range:
        return msgpack.ExtType(_RANGE, _pack([value.start, value.stop, value.step]))
    if (path := _import_path(value)) is not None:
        return msgpack.ExtType(_PATH, path.encode())
    if (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and (path := _import_path(type(value))) is not None
    ):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value) if field.init]
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return msgpack.ExtType(_DATACLASS, encode([path, names, fields]))
    return msgpack.ExtType(_VALUE, _pickled(value))


def _restore(code: int, data: bytes) -> Any:
    if code == _TENSOR:
        dtype, shape, bits = _unpack(data)
        return (
            torch.frombuffer(bytearray(bits), dtype=torch.uint8).view(_DTYPES[dtype]).reshape(shape)
            if bits
            else torch.empty(shape, dtype=_DTYPES[dtype])
        )
    if code == _ARRAY:
        dtype, shape, bits = _unpack(data)
        return np.frombuffer(bytearray(bits), dtype=dtype).reshape(shape)
    if code == _TUPLE:
        return tuple(decode(data))
    if code == _RANGE:
        return range(*_unpack(data))
    if code == _DICT:
        return dict(decode(data))
    if code == _PATH:
        return _imported(data.decode())
    if code == _DATACLASS:
        path, names, fields = decode(data)
        return _imported(path)(**dict(zip(names, fields, strict=True)))
    assert code == _VALUE, code
    return cloudpickle.loads(data)


def _import_path(value: Any) -> str | None:
    """``module:qualname`` of a function or class that another process can import; ``None`` for all else."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(name, str) or module in (None, "__main__") or "<" in name:
        return None
    path = f"{module}:{name}"
    try:
        return path if _imported(path) is value else None
    except (ImportError, AttributeError):
        return None


def _imported(path: str) -> Any:
    module, name = path.split(":")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value
