"""The wire format: what crosses a process border, as bytes.

Tensors and arrays travel as names, dtypes, shapes and their raw bytes (bfloat16 as bits), plain values as msgpack,
functions and classes by import path, dataclasses as their class and their attributes; no constructor runs on arrival.
Only what can't be imported again, such as a class of a script's ``__main__``, goes by value through cloudpickle, in
memory and never to a file. Inside of one process, :func:`carried` hands classes over as they are.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import pickle
from types import FunctionType
from typing import Any

import cloudpickle
import msgpack
import numpy as np
import torch

from chatlearn.guards import kind_of

_TENSOR, _ARRAY, _TUPLE, _PATH, _OBJECT, _VALUE, _RANGE, _DICT, _HERE = range(1, 10)
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_MAIN = "__main__:"


def encode(value: Any) -> bytes:
    """``value`` as bytes, for any process. Sharing between parts of it is not kept; a tensor arrives on the CPU."""
    return _Border(None).encoded(value)


def decode(data: bytes) -> Any:
    """The value that :func:`encode` got; arrays and tensors own their memory and are writeable."""
    return _Border(None).decoded(data)


def carried(value: Any) -> Any:
    """``value`` as it arrives after a way through bytes inside of this process: copied, down to the last object, but
    of the same classes, also those of ``__main__`` and those that are defined inside of functions.
    """
    border = _Border([])
    return border.decoded(border.encoded(value))


class _Border:
    """One way out and in.

    Args:
        here: takes the classes without an import path, when the bytes stay in this process: their numbers in it stand
            in the bytes. ``None`` when the bytes may go anywhere.
    """

    def __init__(self, here: list[Any] | None) -> None:
        self._here = here

    def encoded(self, value: Any) -> bytes:
        try:
            return self._encode(value)
        except RecursionError:  # it holds itself; only pickle keeps track of that
            return _pack(msgpack.ExtType(_VALUE, self._pickled(value)))

    def decoded(self, data: bytes) -> Any:
        return _unpack(data, ext_hook=self._restore, strict_map_key=False, unicode_errors="surrogatepass")

    def _encode(self, value: Any) -> bytes:
        return _pack(self._simple(value), default=self._extension, strict_types=True, unicode_errors="surrogatepass")

    def _simple(self, value: Any) -> Any:
        """Plain nested dicts and lists with ``_extension`` left to do the rest; msgpack takes str and int as keys."""
        kind = kind_of(value)
        if kind is dict:
            if all(type(key) in (str, int) for key in value):
                return {key: self._simple(part) for key, part in value.items()}
            return msgpack.ExtType(_DICT, self._encode([[key, part] for key, part in value.items()]))
        if kind is list:
            return [self._simple(part) for part in value]
        if kind is bytearray:  # msgpack would make bytes of it
            return msgpack.ExtType(_VALUE, self._pickled(value))
        return value

    def _extension(self, value: Any) -> msgpack.ExtType:
        if type(value) is torch.Tensor and value.layout is torch.strided and not value.is_quantized:
            return msgpack.ExtType(_TENSOR, _tensor_bytes(value))
        if type(value) is np.ndarray and value.dtype.kind in "biufc":
            return msgpack.ExtType(_ARRAY, _pack([value.dtype.str, list(value.shape), value.tobytes()]))
        if kind_of(value) is tuple:
            return msgpack.ExtType(_TUPLE, self._encode(list(value)))
        if type(value) is range:
            return msgpack.ExtType(_RANGE, _pack([value.start, value.stop, value.step]))
        if (path := self._path(value)) is not None:
            return msgpack.ExtType(_PATH, path.encode())
        if self._here is not None and isinstance(value, type):
            self._here.append(value)
            return msgpack.ExtType(_HERE, _pack(len(self._here) - 1))
        if _is_plain_dataclass(value) and (self._here is not None or self._path(kind_of(value)) is not None):
            return msgpack.ExtType(_OBJECT, self._encode([kind_of(value), object.__getstate__(value)]))
        return msgpack.ExtType(_VALUE, self._pickled(value))

    def _restore(self, code: int, data: bytes) -> Any:
        if code == _TENSOR:
            dtype, shape, bits = _unpack(data)
            return (
                torch.frombuffer(bytearray(bits), dtype=torch.uint8).view(_DTYPES[dtype]).reshape(shape).clone()
                if bits
                else torch.empty(shape, dtype=_DTYPES[dtype])
            )
        if code == _ARRAY:
            dtype, shape, bits = _unpack(data)
            return np.frombuffer(bytearray(bits), dtype=dtype).reshape(shape)
        if code == _TUPLE:
            return tuple(self.decoded(data))
        if code == _RANGE:
            return range(*_unpack(data))
        if code == _DICT:
            return dict(self.decoded(data))
        if code == _PATH:
            return _imported(data.decode())
        if code == _OBJECT:
            return _with_state(*self.decoded(data))
        if code == _HERE:
            assert self._here is not None
            return self._here[_unpack(data)]
        assert code == _VALUE, code
        return cloudpickle.loads(data) if self._here is None else _Unpickler(data, self._here).load()

    def _pickled(self, value: Any) -> bytes:
        if self._here is None:
            return cloudpickle.dumps(value)  # pyright: ignore[reportUnknownMemberType]
        buffer = io.BytesIO()
        _Pickler(buffer, self._here).dump(value)  # pyright: ignore[reportUnknownMemberType]
        return buffer.getvalue()

    def _path(self, value: Any) -> str | None:
        """``module:qualname`` of a function or class that can be imported where the bytes go; ``None`` for all else."""
        path = _import_path(value)
        return None if path is None or (self._here is None and path.startswith(_MAIN)) else path


class _Pickler(cloudpickle.Pickler):
    """By value, but classes, and functions of ``__main__``, by their numbers in ``here``: cloudpickle sets all
    attributes of a class anew that is there already, and copies the globals of a function.
    """

    def __init__(self, file: io.BytesIO, here: list[Any]) -> None:
        super().__init__(file)  # pyright: ignore[reportUnknownMemberType]
        self._here = here

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, type) or (isinstance(obj, FunctionType) and _import_path(obj) is not None):
            self._here.append(obj)
            return len(self._here) - 1
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, here: list[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._here = here

    def persistent_load(self, pid: int) -> Any:
        return self._here[pid]


# Neither library's functions carry types.
def _pack(value: Any, **options: Any) -> bytes:
    return msgpack.packb(value, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportReturnType]


def _unpack(data: bytes, **options: Any) -> Any:
    return msgpack.unpackb(data, **options)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,))  # one element may have any stride
    return _pack([str(tensor.dtype), list(tensor.shape), flat.view(torch.uint8).numpy().tobytes()])


def _is_plain_dataclass(value: Any) -> bool:
    """Whether all there is to an instance are its attributes; one with a say in its own pickling is pickled."""
    kind = kind_of(value)
    return (
        dataclasses.is_dataclass(kind)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__getnewargs__")
        and not hasattr(kind, "__getnewargs_ex__")
        and all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
        and all(_module_of(getattr(kind, name, None)) in (None, "dataclasses") for name in _STATE_METHODS)
    )


def _module_of(value: Any) -> Any:
    return getattr(value, "__module__", None)


_STATE_METHODS = ("__getstate__", "__setstate__")
"""Methods that :mod:`dataclasses` gives to some classes; those of ``object`` are of no module."""


_HEAP_TYPE = 1 << 9
"""Flag of types that are made at run time; the others, such as ``dict``, keep content outside of attributes."""


def _with_state(kind: type[Any], state: Any) -> Any:
    """An instance with the attributes that ``object.__getstate__`` found, and without a call of its constructor."""
    instance = object.__new__(kind)
    attributes, slots = state if kind_of(state) is tuple else (state, None)
    if attributes:
        instance.__dict__.update(attributes)
    if slots:
        for name, value in slots.items():
            object.__setattr__(instance, name, value)
    return instance


def _import_path(value: Any) -> str | None:
    """``module:qualname`` of a function or class that is found there in this process; ``None`` for all else."""
    module, name = _module_of(value), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
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
