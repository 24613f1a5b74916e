"""What a run asks of its process: signals that end it cleanly, and a heap that the garbage collector leaves alone."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt, SystemExit):
    """The run was ended by Ctrl-C or SIGTERM, with everything closed. Uncaught, the process exits with ``code`` (130
    or 143).
    """

    def __init__(self, code: int) -> None:
        SystemExit.__init__(self, code)


@contextmanager
def frozen_heap() -> Generator[None]:
    """What is alive before a run stays so: the garbage collector need not walk over it again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Termination:
    """What SIGTERM does to a run: it ends as by Ctrl-C; once episodes run, at the end of the one at hand, if that comes
    soon enough.

    Args:
        seconds: that an episode and its checkpoint may take after the signal; 0: none.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_deferring = self._is_ending = False
        self._timer: threading.Timer | None = None
        self.code = 128 + signal.SIGINT
        """To exit with after a KeyboardInterrupt: where a library was running, that is all that is left of a signal."""

    @property
    def is_asked_for(self) -> bool:
        """Whether the run is to end after this episode."""
        return self._timer is not None

    def end_if_asked(self) -> None:
        """Ends the run after an episode.

        Raises:
            Interrupted: SIGTERM came during the episode.
        """
        if self.is_asked_for:
            self._is_ending = True
            raise Interrupted(self.code)

    @contextmanager
    def deferred(self) -> Generator[None]:
        """Inside, the first SIGTERM waits for the end of the episode, and the second one does not."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
            self.stop()

    def stop(self) -> None:
        """Nothing follows any more."""
        if self._timer is not None:
            self._timer.cancel()

    def come(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM is here."""
        if self._is_ending:  # while the run is closed
            return
        self.code = 128 + number
        if not self._is_deferring or self.is_asked_for or not self._seconds:
            self._is_ending = True
            raise Interrupted(self.code)
        self._timer = threading.Timer(self._seconds, os.kill, (os.getpid(), number))
        self._timer.daemon = True
        self._timer.start()


@contextmanager
def sigterm_ends(seconds: float) -> Generator[Termination]:
    """SIGTERM ends a run (in the main thread, where signals arrive); see :class:`Termination`."""
    termination = Termination(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return
    before = signal.signal(signal.SIGTERM, termination.come)
    try:
        yield termination
    finally:
        termination.stop()
        signal.signal(signal.SIGTERM, before)
