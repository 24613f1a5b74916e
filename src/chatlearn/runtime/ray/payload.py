"""Values as Ray carries them: the wire format, with large tensors and arrays beside it so that they are not copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from chatlearn.guards import kind_of
from chatlearn.runtime.calls import Rows
from chatlearn.runtime.wire import decode_parts, encode_parts

Payload: TypeAlias = "bytes | list[Any]"


@dataclass(frozen=True)
class Argument:
    """Stands for a future among the arguments of a call: the number of the value that travels beside them."""

    number: int


def packed(value: Any) -> Payload:
    """A value in the form that Ray stores without a copy."""
    head, buffers = encode_parts(value)
    return [head, *buffers] if buffers else head


def unpacked(payload: Payload) -> Any:
    """The value of :func:`packed`; large tensors and arrays lie in Ray's shared memory, and are for reading."""
    return decode_parts(payload, ()) if isinstance(payload, bytes) else decode_parts(payload[0], payload[1:])


def owned(payload: Payload) -> Any:
    """The value of :func:`packed`, all of it the caller's own, to be changed too."""
    if isinstance(payload, bytes):
        return decode_parts(payload, ())
    value = decode_parts(payload[0], [buffer.copy() for buffer in payload[1:]])
    _make_writeable(value)
    return value


def _make_writeable(value: Any) -> None:
    """Lifts the mark of arrays in a batch, whose memory is their own."""
    kind = kind_of(value)
    if kind is dict:
        for part in value.values():
            _make_writeable(part)
    elif kind is list or kind is tuple:
        for part in value:
            _make_writeable(part)
    elif kind is np.ndarray and not value.flags.writeable:
        value.flags.writeable = True


def replaced(value: Any, kind: type, replace: Callable[[Any], Any]) -> Any:
    """``value`` with each instance of ``kind`` replaced, where futures may stand: in tuples, dicts and Rows."""
    own = kind_of(value)
    if own is kind:
        return replace(value)
    if own is tuple:
        return tuple([replaced(part, kind, replace) for part in value])
    if own is dict:
        return {key: replaced(part, kind, replace) for key, part in value.items()}
    if own is Rows:
        return Rows(replaced(value.sources, kind, replace), value.rows)
    return value
