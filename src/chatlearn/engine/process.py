"""What a run asks of its process: signals that end it cleanly, and a heap that the garbage collector leaves alone."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Generator
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
def sigterm_raises() -> Generator[Callable[[], int]]:
    """SIGTERM ends a run as Ctrl-C does (in the main thread, where signals arrive).

    Yields:
        What gives the code to exit with after a KeyboardInterrupt: where a library was running, that is all that it has
        left of a signal.
    """
    code = 128 + signal.SIGINT
    if threading.current_thread() is not threading.main_thread():
        yield lambda: code
        return

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal code
        code = 128 + number
        raise Interrupted(code)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield lambda: code
    finally:
        signal.signal(signal.SIGTERM, before)
