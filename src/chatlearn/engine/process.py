"""What a run asks of its process: signals that end it cleanly, and a heap that the garbage collector leaves alone."""

from __future__ import annotations

import gc
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


@contextmanager
def sigterm_raises() -> Generator[None]:
    """SIGTERM ends a run as Ctrl-C does (in the main thread, where signals arrive)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
