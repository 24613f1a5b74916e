"""Errors on their way from a worker to the driver."""

from __future__ import annotations

import traceback

from chatlearn import errors
from chatlearn.errors import ChatLearnError, DataError, WorkerError
from chatlearn.runtime.wire import decode, encode


class Failed(Exception):  # noqa: N818  # travels, and is never shown
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


class _Traceback(Exception):  # noqa: N818  # as concurrent.futures does it
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class LostPeer(Exception):  # noqa: N818  # travels, and is never shown
    """A replica that a step asks has died."""

    def __init__(self, module: str, replica: int) -> None:
        super().__init__(f"{module}[{replica}] died while it was asked")
        self.lost = module, replica


def failed(error: BaseException) -> Failed:
    """An exception of a worker, ready to travel."""
    if isinstance(error, Failed):
        return error
    lost = next((lost for each in _chain(error) if (lost := getattr(each, "lost", None)) is not None), None)
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
        own = (_decoded(failure.cause) if failure.cause else None) or RemoteError(failure.cause_text)
        own.__cause__, cause = trace, own
    if not failure.kind:
        if isinstance(cause, Exception):
            return cause
        error: Exception = WorkerError(failure.text)
    else:
        error = getattr(errors, failure.kind)(failure.text)
    error.__cause__ = cause or trace
    vars(error)["lost"] = failure.lost
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
    """The exception alone: its class, what it was made of and its attributes; nothing where these can't travel."""
    try:
        data = encode((type(error), error.args, {**vars(error)}))
        return data if _decoded(data) is not None else b""
    except DataError:
        return b""


def _decoded(data: bytes) -> BaseException | None:
    """The exception, made without a call of its constructor, which may ask for what ``args`` does not hold."""
    try:
        kind, args, attributes = decode(data)
        error: BaseException = kind.__new__(kind, *args)
        error.args = args
        error.__dict__.update(attributes)
    except _NO_WAY_BACK:
        return None
    return error


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
"""What a class may raise when an exception of it is made anew."""
