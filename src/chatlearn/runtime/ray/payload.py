"""Values as Ray carries them: the wire format, with large tensors and arrays beside it so that they are not copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

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


def unpacked(payload: Payload, copied: bool = False) -> Any:
    """The value of :func:`packed`; large tensors and arrays lie in Ray's shared memory, unless they are ``copied``."""
    if copied and not isinstance(payload, bytes):
        payload = [payload[0], *(buffer.copy() for buffer in payload[1:])]
    return decode_parts(payload, ()) if isinstance(payload, bytes) else decode_parts(payload[0], payload[1:])


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
