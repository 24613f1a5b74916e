"""A look at calls that run in this process: whether one takes too long, and what it is executing then."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from chatlearn.runtime.base import Handle
from chatlearn.runtime.call_names import words_of
from chatlearn.runtime.stacks import users_frames

_Call = tuple[Handle, str, tuple[Any, ...]]
_Running = tuple[_Call, float]
"""A call, and ``time.monotonic()`` when it began."""

_DEBUGGERS = frozenset({"bdb", "pdb", "ipdb", "pudb", "pydevd", "_pydevd_bundle", "debugpy"})
"""Packages whose frames are on the stack of a thread that somebody steps through."""


class Watchdog:
    """Tells once of each call that is running while none has ended for too long. The call goes on: nobody but its own
    code could end it safely, and Ctrl-C still does.

    Args:
        timeout: seconds that are too long; ``None`` watches nothing.
        note: takes the text.
    """

    def __init__(self, timeout: float | None, note: Callable[[str], None] = print) -> None:
        self._timeout, self._note = timeout, note
        self._running: dict[int, _Running] = {}
        self._moved = 0.0
        self._told: set[tuple[int, float]] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch, on a thread of its own."""
        if self._timeout is not None and self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._watch, args=(self._timeout,), name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def begin(self, handle: Handle, method: str, args: tuple[Any, ...]) -> _Running | None:
        """This thread begins a call, or one that another call has made; arguments as of
        :meth:`~chatlearn.runtime.base.Cluster.call`. What it returns, :meth:`end` takes.
        """
        thread = threading.get_ident()
        outer = self._running.get(thread)
        self._running[thread] = (handle, method, args), time.monotonic()
        return outer

    def end(self, outer: _Running | None) -> None:
        """The call of this thread that began last has ended."""
        self._moved = time.monotonic()
        if outer is None:
            del self._running[threading.get_ident()]
        else:
            self._running[threading.get_ident()] = outer

    def _watch(self, timeout: float) -> None:
        wait = timeout
        while not self._over.wait(wait):
            frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # Python documents it for this use
            now = time.monotonic()
            if any(_is_debugged(frame) for frame in frames.values()):
                self._moved = now
            running = {**self._running}
            begun = [max(since, self._moved) for _, since in running.values()]
            wait = min([timeout, *(since + timeout - now for since in begun if since + timeout > now)])
            if begun and min(begun) + timeout <= now:
                for thread, (call, since) in running.items():
                    if (thread, since) not in self._told and thread in frames:
                        self._told.add((thread, since))
                        self._note(_report(call, now - since, frames[thread]))


def _report(call: _Call, seconds: float, frame: FrameType) -> str:
    return (
        f"note: {words_of(*call)} has been running for {seconds:.0f} s, and no call has ended for as long as "
        "runtime.hang_timeout_seconds says. It goes on; Ctrl-C ends the run. What it is executing:\n"
        f"{users_frames(''.join(traceback.format_stack(frame)))}"
    )


def _is_debugged(frame: FrameType | None) -> bool:
    """Whether somebody steps through the thread of a frame."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False
