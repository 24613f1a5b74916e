"""Calls that hang in the driver's own process are told; they are not ended."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from chatlearn.runtime.base import Handle
from chatlearn.runtime.watchdog import Watchdog

POLICY = Handle("policy", 0)
LIMIT = 0.05
LONG = 10.0


@contextmanager
def watched(watchdog: Watchdog, *call: Any) -> Iterator[None]:
    """This thread runs a call."""
    outer = watchdog.begin(*call)
    try:
        yield
    finally:
        watchdog.end(outer)


class Notes:
    """Takes notes; a test waits until there are enough."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.there = threading.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self.there.set()


def test_a_call_that_takes_too_long_is_told_once_with_what_it_executes() -> None:
    notes = Notes()
    watchdog = Watchdog(LIMIT, notes)
    watchdog.start()
    with watched(watchdog, POLICY, "hook", ("before_episode", "episode 2")):
        assert notes.there.wait(LONG)
        notes.there.clear()
        assert not notes.there.wait(5 * LIMIT)
    watchdog.stop()
    (text,) = notes.texts
    first, *frames = text.splitlines()
    assert first.startswith("note: policy[0].before_episode, episode 2 has been running for 0 s")
    assert f'  File "{__file__}", line ' in "\n".join(frames)
    assert "notes.there.wait" in text


def test_each_call_that_hangs_is_told() -> None:
    notes = Notes()
    watchdog = Watchdog(LIMIT, notes)
    watchdog.start()
    for name in ("first", "second"):
        with watched(watchdog, Handle(name, 0), "setup", ()):
            assert notes.there.wait(LONG)
        notes.there.clear()
    watchdog.stop()
    assert [text.split()[1] for text in notes.texts] == ["first[0].setup", "second[0].setup"]


def test_the_call_that_another_one_has_made_is_the_one_that_hangs() -> None:
    notes = Notes()
    watchdog = Watchdog(LIMIT, notes)
    watchdog.start()
    with watched(watchdog, POLICY, "setup", ()), watched(watchdog, Handle("judge", 0), "setup", ()):
        assert notes.there.wait(LONG)
    watchdog.stop()
    assert notes.texts[0].startswith("note: judge[0].setup has")


def test_many_short_calls_are_no_hang_and_neither_is_a_time_without_calls() -> None:
    notes = Notes()
    watchdog = Watchdog(20 * LIMIT, notes)
    watchdog.start()
    pause = threading.Event()
    for _ in range(24):
        with watched(watchdog, POLICY, "setup", ()):
            pause.wait(LIMIT)
    pause.wait(24 * LIMIT)
    watchdog.stop()
    assert notes.texts == []


def test_a_call_that_somebody_steps_through_is_no_hang() -> None:
    notes = Notes()
    watchdog = Watchdog(LIMIT, notes)
    watchdog.start()
    debugger = types.FunctionType(_wait.__code__, {"__name__": "pdb"})
    with watched(watchdog, POLICY, "setup", ()):
        debugger(notes.there)
    watchdog.stop()
    assert notes.texts == []


def _wait(event: threading.Event) -> None:
    event.wait(0.5)


@pytest.mark.parametrize("timeout", [None, 1800.0])
def test_its_thread_ends_with_it(timeout: float | None) -> None:
    before = set(threading.enumerate())
    watchdog = Watchdog(timeout)
    watchdog.start()
    with watched(watchdog, POLICY, "setup", ()):
        pass
    watchdog.stop()
    assert set(threading.enumerate()) <= before
