"""The wire format: what crosses a process border, as bytes.

Tensors and arrays travel as dtypes, shapes and their raw bytes (bfloat16 as bits), plain values as msgpack, functions
and classes by import path, dataclasses as their class and their attributes; no constructor runs on arrival. Only what
can't be imported again, such as a class of a script's ``__main__``, goes by value through cloudpickle, in memory and
never to a file. Inside of one process, :func:`carried` hands classes over as they are.

In the bytes, plain values and dicts with plain keys are msgpack's own. All else is an array whose last entry is a code,
which says what the entries before it stand for.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from types import FunctionType
from typing import Any

import cloudpickle
import msgpack
import numpy as np
import torch

from chatlearn.errors import DataError
from chatlearn.guards import kind_of
from chatlearn.runtime import memory
from chatlearn.runtime.culprits import Culprit, caught, culprit_of
from chatlearn.runtime.memory import Bytes
from chatlearn.runtime.objects import import_path, instance_of, layout_of, located, parts_of

BESIDE_BYTES = 16 * 1024
"""Tensors and arrays of so many bytes and more travel beside the head of :func:`encode_parts`."""

(
    _LIST, _TUPLE, _OBJECT, _TENSOR, _ARRAY, _TENSOR_BESIDE, _ARRAY_BESIDE, _ARRAY_OF_OBJECTS, _NUMBER, _LARGE_INT,
    _RANGE, _DICT, _PATH, _VALUE, _CLASS, _OBJECT_OF_CLASS, _CLASSES, _WITH_CLASSES,
) = range(18)  # fmt: skip

_PLAIN = frozenset({str, int, float, bool, type(None), bytes})
"""Types that msgpack takes and gives back as they are."""

_MAIN = "__main__:"


def encode(value: Any) -> bytes:
    """``value`` as bytes, for any process. Sharing between parts of it is not kept; a tensor arrives on the CPU.

    Raises:
        DataError: something in it can't be sent; the text names its path in the value.
    """
    return _Border().encoded(value)


def decode(data: bytes) -> Any:
    """The value that :func:`encode` got; arrays and tensors own their memory and are writeable.

    Raises:
        DataError: it is made of something that can't be imported here.
    """
    return _Border().decoded(data)


def encode_parts(value: Any) -> tuple[bytes, list[Bytes]]:
    """As :func:`encode`, but the bytes of large tensors and arrays (:data:`BESIDE_BYTES`) stay where they are.

    Returns:
        The head, and 1-d uint8 arrays over the memory of the large tensors and arrays (over a copy of those that are
        not contiguous, or not on the CPU).
    """
    buffers: list[Bytes] = []
    return _Border(buffers=buffers).encoded(value), buffers


def decode_parts(head: bytes, buffers: Sequence[Bytes]) -> Any:
    """The value that :func:`encode_parts` got.

    What travelled beside the head lies over the memory of ``buffers`` where that is aligned to 64 bytes (the bits of
    matrix products depend on it), else over a copy. Such arrays are read-only. No tensor can be, so nobody may write to
    one whose buffer is read-only, or is shared with others. All else owns its memory.

    Raises:
        DataError: it is made of something that can't be imported here.
    """
    return _Border(buffers=buffers).decoded(head)


def carried(value: Any) -> Any:
    """``value`` as it arrives after a way through bytes inside of this process: copied, down to the last object, but
    of the same classes, also those of ``__main__`` and those that are defined inside of functions.
    """
    border = _Border(stays=True)
    return border.decoded(border.encoded(value))


def obstacle(value: Any) -> Culprit | None:
    """The first part of a value that keeps it from being sent to another process; ``None`` if there is none."""
    border = _Border(buffers=[])
    error = border.failure(value)
    return None if error is None else culprit_of(value, error, border.failure)


class _Border:
    """One way out or in.

    Args:
        stays: the bytes stay in this process, so that classes, and functions of ``__main__``, are numbers in them and
            the border keeps the things themselves. Else those that can't be imported travel along, by value.
        buffers: on the way out, a list that takes the bytes of large tensors and arrays; on the way in, what it took.
            ``None`` where these are among the other bytes.
    """

    def __init__(self, stays: bool = False, buffers: Sequence[Bytes] | None = None) -> None:
        self._stays = stays
        self._buffers = buffers
        self._classes: list[Any] = []
        self._numbers: dict[int, int] = {}

    def encoded(self, value: Any) -> bytes:
        try:
            return self.attempted(value)
        except Exception as error:
            path, kind, why = culprit_of(value, error, self.failure)
            what = f"`{path}` ({kind})" if path else f"an object of type {kind}"
            raise DataError(
                f"{what} can't be sent to another process: {why}. Send plain values, tensors and arrays, and make "
                f"such an object where it is used (a module does so in setup())."
            ) from error

    def failure(self, value: Any) -> Exception | None:
        """What is raised when a value is sent this way; ``None`` if it can be."""
        return caught(_Border(self._stays, []).attempted, value)

    def attempted(self, value: Any) -> bytes:
        """As :meth:`encoded`, but raises what is raised on the way."""
        try:
            return self._packed(self._flat(value))
        except (
            RecursionError,
            ValueError,
        ):  # too deep for msgpack, or it holds itself: only pickle keeps track of that
            if isinstance(self._buffers, list):
                self._buffers.clear()
            return self._packed(self._pickled(value))

    def decoded(self, data: bytes) -> Any:
        return msgpack.unpackb(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            data, list_hook=self._restored, strict_map_key=False, unicode_errors="surrogatepass"
        )

    def _packed(self, flat: Any) -> bytes:
        if self._classes and not self._stays:
            sent = [(_origin(kind), _class_bytes(kind)) for kind in self._classes]
            flat = [[*chain(*sent), _CLASSES], flat, _WITH_CLASSES]
        return _pack(flat)

    def _flat(self, value: Any) -> Any:
        """``value`` as something that msgpack takes."""
        kind = kind_of(value)
        if kind in _PLAIN:
            return value
        if kind is dict:
            return self._dict(value)
        if kind is list:
            return self._entries(value, _LIST)
        if kind is tuple:
            return self._entries(value, _TUPLE)
        if kind is torch.Tensor:
            return self._tensor(value) if memory.has_raw_bytes(value) else self._pickled(value)
        if (parts := parts_of(kind)) is not None:
            names, values = parts.state(value)
            named = parts.is_found(main=self._stays)
            if (layout := parts.layout(names, named)) is not None:
                flat = self._entries(values, layout)
                return [*flat, _OBJECT] if named else [*flat, self._number(kind), _OBJECT_OF_CLASS]
        return self._other(value, kind)

    def _entries(self, values: Any, last: Any) -> list[Any]:
        if _PLAIN.issuperset(map(type, values)):
            return [*values, last]
        flat = [part if kind_of(part) in _PLAIN else self._flat(part) for part in values]
        flat.append(last)
        return flat

    def _dict(self, value: dict[Any, Any]) -> Any:
        if not _PLAIN.issuperset(map(type, value)):
            return self._entries([*chain(*value.items())], _DICT)
        if _PLAIN.issuperset(map(type, value.values())):
            return value
        return {key: part if kind_of(part) in _PLAIN else self._flat(part) for key, part in value.items()}

    def _other(self, value: Any, kind: type[Any]) -> Any:
        if kind is np.ndarray:
            if memory.has_raw_dtype(value):
                return self._array(value)
            if value.dtype.kind == "O":
                return [self._entries(value.ravel().tolist(), _LIST), *value.shape, _ARRAY_OF_OBJECTS]
        elif kind is range:
            return [value.start, value.stop, value.step, _RANGE]
        elif (path := self._path(value)) is not None:
            return [path, _PATH]
        elif isinstance(value, type):
            return [self._number(value), _CLASS]
        elif memory.is_number(value):
            return [value.tobytes(), value.dtype.str, _NUMBER]
        return self._pickled(value)

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        value, dtype = memory.flattened(value), str(value.dtype)
        if value.nbytes < BESIDE_BYTES:
            return [memory.copied_bytes(value), dtype, *value.shape, _TENSOR]
        if self._buffers is None:
            return [memory.bytes_of(value).data, dtype, *value.shape, _TENSOR]
        return [self._beside(memory.bytes_of(value)), dtype, *value.shape, _TENSOR_BESIDE]

    def _array(self, value: np.ndarray[Any, Any]) -> list[Any]:
        if self._buffers is None or value.nbytes < BESIDE_BYTES:
            return [value.tobytes(), value.dtype.str, *value.shape, _ARRAY]
        return [self._beside(memory.bytes_of(value)), value.dtype.str, *value.shape, _ARRAY_BESIDE]

    def _beside(self, buffer: Bytes) -> int:
        assert isinstance(self._buffers, list)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _buffer(self, number: int) -> Bytes:
        assert self._buffers is not None
        return self._buffers[number]

    def _restored(self, entries: list[Any]) -> Any:
        """What an array of the format stands for; the arrays inside of it are restored already."""
        code = entries.pop()
        if code == _LIST:
            return entries
        if code == _TUPLE:
            return tuple(entries)
        if code == _OBJECT:
            layout = layout_of(entries.pop())
            return instance_of(located(layout.module, layout.name), layout, entries)
        if code == _TENSOR:
            return memory.tensor_from(*entries)
        if code == _DICT:
            return dict(zip(entries[::2], entries[1::2], strict=True))
        if code == _OBJECT_OF_CLASS:
            *values, layout, number = entries
            return instance_of(self._classes[number], layout_of(layout), values)
        if code == _CLASSES:
            self._classes = [_arrived(origin, data) for origin, data in zip(entries[::2], entries[1::2], strict=True)]
            return None
        return self._restored_other(code, *entries)

    def _restored_other(self, code: int, first: Any, *others: Any) -> Any:
        if code == _TENSOR_BESIDE:
            return memory.tensor_over(self._buffer(first), *others)
        if code == _ARRAY_BESIDE:
            return memory.array_over(self._buffer(first), *others)
        if code == _ARRAY:
            return memory.array_from(first, *others)
        if code == _ARRAY_OF_OBJECTS:
            return memory.array_of_objects(first, others)
        if code == _NUMBER:
            return memory.array_from(first, *others)[()]
        if code == _LARGE_INT:
            return int.from_bytes(first, "little", signed=True)
        if code == _RANGE:
            return range(first, *others)
        if code == _PATH:
            return located(*first.split(":"))
        if code == _CLASS:
            return self._classes[first]
        if code == _WITH_CLASSES:
            return others[0]
        assert code == _VALUE, code
        return _loaded(_Unpickler(first, self).load)

    def _pickled(self, value: Any) -> list[Any]:
        buffer = io.BytesIO()
        _Pickler(buffer, self).dump(value)  # pyright: ignore[reportUnknownMemberType]
        return [buffer.getvalue(), _VALUE]

    def _path(self, value: Any) -> str | None:
        """``module:qualname`` of a function or class that can be imported where the bytes go; ``None`` for all else."""
        path = import_path(value)
        return None if path is None or (not self._stays and path.startswith(_MAIN)) else path

    def _number(self, value: Any) -> int:
        """Of something that travels along, or that the border keeps."""
        number = self._numbers.setdefault(id(value), len(self._classes))
        if number == len(self._classes):
            self._classes.append(value)
        return number

    def reference(self, value: Any) -> int | bytes | None:
        """What stands for ``value`` inside of a pickle; ``None`` where pickle does the work.

        Inside of this process these are all classes, and functions of ``__main__``: cloudpickle sets all attributes of
        a class anew that is there already, and copies the globals of a function.
        """
        if type(value) is _Packed:
            return value.data
        if isinstance(value, type):
            travels = value.__module__ != "builtins" and self._path(value) is None
            return self._number(value) if self._stays or travels else None
        is_kept = self._stays and isinstance(value, FunctionType) and import_path(value) is not None
        return self._number(value) if is_kept else None

    def referred(self, reference: int | bytes) -> Any:
        """What a :meth:`reference` stands for."""
        return self._classes[reference] if isinstance(reference, int) else self.decoded(reference)

    def reduced(self, value: Any) -> Any:
        """How a tensor, an array or a number of numpy goes into a pickle: as in the rest of the format, and not as the
        version of the library at hand has it. ``NotImplemented`` for all else.
        """
        kind = kind_of(value)
        if kind is torch.nn.Parameter and not vars(value):
            return torch.nn.Parameter, (value.data, value.requires_grad)
        if kind is torch.Tensor and not vars(value) and memory.has_raw_bytes(value):
            return _kept, (_Packed(_pack(self._tensor(value))), value.requires_grad and value.is_leaf)
        if kind is np.ndarray and memory.has_raw_dtype(value):
            return _kept, (_Packed(_pack(self._array(value))), False)
        if memory.is_number(value):
            return _kept, (_Packed(_pack([value.tobytes(), value.dtype.str, _NUMBER])), False)
        if kind is io.TextIOWrapper and value not in (sys.stdout, sys.stderr):
            return value.__reduce_ex__(4)  # it refuses; cloudpickle would send what the file holds
        return NotImplemented


class _Packed:
    """Something of the format inside of a pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def _kept(value: Any, requires_grad: bool) -> Any:
    """A tensor, an array or a number as it leaves a pickle."""
    return value.requires_grad_() if requires_grad else value


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, border: _Border) -> None:
        super().__init__(file)  # pyright: ignore[reportUnknownMemberType]
        self._border = border

    def persistent_id(self, obj: Any) -> int | bytes | None:
        return self._border.reference(obj)

    def reducer_override(self, obj: Any) -> Any:
        reduced = self._border.reduced(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced  # pyright: ignore


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, border: _Border) -> None:
        super().__init__(io.BytesIO(data))
        self._border = border

    def persistent_load(self, pid: Any) -> Any:
        return self._border.referred(pid)


_ORIGINS: weakref.WeakKeyDictionary[type[Any], str] = weakref.WeakKeyDictionary()
"""Classes that have been sent by value, or have come so -> what they are known by in all processes."""

_OURS: weakref.WeakValueDictionary[str, type[Any]] = weakref.WeakValueDictionary()
"""Those of them that are this process's own."""

_ARRIVED: dict[tuple[str, bytes], type[Any]] = {}
"""Those that have come, by the bytes that came last."""

_MAX_ARRIVED = 256
_TAKING = threading.RLock()


def _origin(kind: type[Any]) -> str:
    with _TAKING:
        if kind not in _ORIGINS:
            _ORIGINS[kind] = uuid.uuid4().hex
            _OURS[_ORIGINS[kind]] = kind
        return _ORIGINS[kind]


def _arrived(origin: str, data: bytes) -> type[Any]:
    """A class that came by value: this process's own if it comes back, else one for all its arrivals. Its attributes
    are set when it comes first, and when it comes with others than before.
    """
    kind = _OURS.get(origin) or _ARRIVED.get((origin, data))
    if kind is None:
        with _TAKING:
            kind = _loaded(cloudpickle.loads, data)
            assert isinstance(kind, type)
            outdated = [known for known in _ARRIVED if known[0] == origin]
            for known in [*outdated, *list(_ARRIVED)[: max(len(_ARRIVED) - _MAX_ARRIVED, 0)]]:
                _ARRIVED.pop(known, None)
            _ARRIVED[origin, data] = kind
            _ORIGINS[kind] = origin
    return kind


def _loaded(load: Callable[..., Any], *data: bytes) -> Any:
    try:
        return load(*data)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"an object can't be made here ({sys.executable}): {type(error).__name__}: {error}. Install here what it "
            f"is made of, or put its folder on PYTHONPATH."
        ) from error
    except Exception as error:
        raise DataError(
            f"an object can be sent, but not be made again where it arrives: {type(error).__name__}: {error}. Send "
            f"plain values, or give its class a __reduce__ that says how it is made."
        ) from error


# The functions of both libraries carry no types.
def _class_bytes(kind: type[Any]) -> bytes:
    return cloudpickle.dumps(kind)  # pyright: ignore[reportUnknownMemberType]


def _pack(flat: Any) -> bytes:
    options: dict[str, Any] = {"default": _large_int, "strict_types": True, "buf_size": 1024}
    try:
        return msgpack.Packer(**options).pack(flat)  # pyright: ignore
    except UnicodeEncodeError:  # half of a surrogate pair
        return msgpack.Packer(**options, unicode_errors="surrogatepass").pack(flat)  # pyright: ignore


def _large_int(value: int) -> list[Any]:
    """An integer of more than 64 bits."""
    return [value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True), _LARGE_INT]
