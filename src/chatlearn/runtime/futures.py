"""Futures of calls inside of one process, and how they are found among the arguments of further calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatlearn.guards import kind_of
from chatlearn.runtime.calls import Rows

if TYPE_CHECKING:
    from chatlearn.runtime.threads import Task, Threads


@dataclass(frozen=True)
class Done:
    """A future that is there already."""

    value: Any

    def result(self) -> Any:
        """The value."""
        return self.value


class Pending:
    """A future of a call of :class:`Threads`."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiting: list[Task] = []

    @property
    def whole(self) -> Pending:
        """The future of the call."""
        return self

    def result(self) -> Any:
        """The value, once it is there; raises what the call raised."""
        self._threads.wait([self])
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True)
class Part:
    """One of the values that a call returns."""

    whole: Pending
    index: int

    def result(self) -> Any:
        """The value, once it is there; raises what the call raised."""
        return self.whole.result()[self.index]


def resolved(value: Any) -> Any:
    """``value`` with each future in it replaced by what it holds; lists are data and not searched."""
    kind = kind_of(value)
    if kind is Done or kind is Pending:
        return value.value
    if kind is Part:
        return value.whole.value[value.index]
    if kind is tuple:
        return tuple([resolved(part) for part in value])
    if kind is dict:
        return {key: resolved(part) for key, part in value.items()}
    if kind is Rows:
        return Rows(resolved(value.sources), value.rows)
    return value


def pending_in(value: Any) -> Iterator[Pending]:
    """The futures that a call has to wait for, by the same rules as :func:`resolved`."""
    if isinstance(value, (Part, Pending)):
        yield value.whole
    elif (kind := kind_of(value)) is tuple:
        for part in value:
            yield from pending_in(part)
    elif kind is dict:
        for part in value.values():
            yield from pending_in(part)
    elif isinstance(value, Rows):
        yield from pending_in(value.sources)
