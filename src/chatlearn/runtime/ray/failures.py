"""Errors on their way from a worker to the driver."""

from __future__ import annotations

import traceback
from typing import Any

from chatlearn import errors
from chatlearn.errors import ChatLearnError, DataError, WorkerError
from chatlearn.runtime.wire import decode, encode


class Failed(Exception):  # noqa: N818
    """What a call on a worker raised, in a form that always travels.

    Args:
        kind: name in :mod:`chatlearn.errors`; empty where it is an error of the user's alone.
        text: of the error.
        trace: its traceback, formatted.
        cause: the user's exception, in the wire format; empty where that can't be done.
        cause_text: the last line of its traceback.
        lost: module and replica that died while they were asked from inside of a step.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        trace: str,
        cause: bytes = b"",
        cause_text: str = "",
        lost: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(kind, text, trace, cause, cause_text, lost)
        self.kind, self.text, self.trace = kind, text, trace
        self.cause, self.cause_text, self.lost = cause, cause_text, lost


class RemoteError(Exception):
    """Stands for a user's exception that can't be brought to the driver."""


class _Traceback(Exception):  # noqa: N818
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class LostPeer(Exception):  # noqa: N818
    """A replica that a step asks has died."""

    def __init__(self, module: str, replica: int) -> None:
        super().__init__(f"{module}[{replica}] died while it was asked")
        self.lost = module, replica


def failed(error: BaseException) -> Failed:
    """An exception of a worker, ready to travel."""
    if isinstance(error, Failed):
        return error
    lost = next((each.lost for each in _chain(error) if isinstance(each, LostPeer)), None)
    if not isinstance(error, ChatLearnError):
        return Failed("", f"{type(error).__name__}: {error}", _trace(error), _encoded(error), _last(error), lost)
    cause = error.__cause__
    if cause is None:
        return Failed(type(error).__name__, str(error), _trace(error), lost=lost)
    return Failed(type(error).__name__, str(error), _trace(cause), _encoded(cause), _last(cause), lost)


def restored(failure: Failed) -> Exception:
    """The error as the driver raises it: of its kind, with the user's exception as its cause and the worker's
    traceback above that.
    """
    trace = _Traceback(failure.trace)
    cause: BaseException | None = None
    if failure.cause or failure.cause_text:
        cause = _decoded(failure.cause) or RemoteError(failure.cause_text)
        cause.__cause__ = trace
    if not failure.kind:
        if isinstance(cause, Exception):
            return cause
        error: Exception = WorkerError(failure.text)
    else:
        error = getattr(errors, failure.kind)(failure.text)
    error.__cause__ = cause or trace
    return error


def original(error: BaseException) -> BaseException:
    """What lies below the errors that Ray wraps around it: what a call raised, or what Ray itself says."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _last(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _encoded(error: BaseException) -> bytes:
    """The exception alone; nothing where it does not come back as what it was."""
    try:
        data = encode(error)
        return data if type(decode(data)) is type(error) else b""
    except _NO_WAY_BACK:
        return b""


def _decoded(data: bytes) -> Any:
    try:
        return decode(data) if data else None
    except _NO_WAY_BACK:
        return None


_NO_WAY_BACK = (
    ArithmeticError,
    AttributeError,
    DataError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What making an exception anew may raise: its class's constructor asks for what its ``args`` don't hold."""
