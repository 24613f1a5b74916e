"""Calls on their way, and futures of what they return."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from chatlearn.runtime.base import Handle
from chatlearn.runtime.call_names import name_of, place_of, words_of

Way = Literal["call", "call_pair", "call_apart"]
"""How the values of a call come back: one; one and a report; one that stays on the cluster and a receipt."""


class Value:
    """A value that stays on the cluster for as long as a future of it is held.

    Attributes:
        ref: Ray's reference to it; another one after the call was submitted again.
    """

    __slots__ = ("__weakref__", "ref")

    def __init__(self) -> None:
        self.ref: Any = None


class Task:
    """A call, from its submission until the driver has seen that it ended. It can be submitted again.

    Attributes:
        handle: the replica.
        method: of its worker.
        args: with futures in them; dropped once it has ended.
        way: how its values come back.
        ending: Ray's reference to what is there when it has ended: its only value, or a small report or receipt.
        value: gives its other value, while anybody wants it.
        inputs: calls that it waits for and that had not ended when it was submitted.
        submitted: ``time.monotonic()`` then.
        before: the call that its replica got before this one; dropped once this one has ended.
        ended: ``time.monotonic()`` when the driver has seen that it ended.
        number: in the order of first submission.
        done: the driver knows that it has ended.
        error: what it raised.
        receipt: what :attr:`ending` refers to.
    """

    __slots__ = (
        "args",
        "before",
        "done",
        "ended",
        "ending",
        "error",
        "handle",
        "inputs",
        "method",
        "number",
        "receipt",
        "submitted",
        "value",
        "way",
    )

    def __init__(self, handle: Handle, method: str, args: tuple[Any, ...], way: Way) -> None:
        self.handle, self.method, self.way = handle, method, way
        self.args: tuple[Any, ...] = args
        self.ending: Any = None
        self.value: Callable[[], Value | None] = lambda: None
        self.inputs: list[Task] = []
        self.submitted = self.ended = time.monotonic()
        self.before: Task | None = None
        self.number = 0
        self.done = False
        self.error: Exception | None = None
        self.receipt: Any = None

    def end(self, receipt: Any = None, error: Exception | None = None) -> None:
        """It has ended; what it was made of is let go."""
        self.done, self.receipt, self.error = True, receipt, error
        self.args, self.inputs, self.before = (), [], None
        self.ended = time.monotonic()

    def __str__(self) -> str:
        """For people: ``policy[0].forward_step, episode 3, batch 17``."""
        return words_of(self.handle, self.method, self.args)

    @property
    def name(self) -> str:
        """What it runs, for people: the step, the hook, or what is done beside the module."""
        return name_of(self.method, self.args)

    @property
    def place(self) -> str:
        """Where in the run, for people."""
        return place_of(self.method, self.args)


@dataclass(frozen=True, slots=True)
class RayFuture:
    """One of the values of a call.

    Attributes:
        task: the call.
        value: that stays on the cluster; ``None``: what comes back with the end of the call.
        get: fetches it.
    """

    task: Task
    value: Value | None
    get: Callable[[RayFuture], Any]

    @property
    def ref(self) -> Any:
        """Ray's reference to it."""
        return self.task.ending if self.value is None else self.value.ref

    def result(self) -> Any:
        """The value, once it is there; raises what the call raised."""
        return self.get(self)
