"""Files that are being written, on a thread of their own or at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from chatlearn.checkpoint.disk import Written

Files = dict[str, Written]
"""Files that are on the disk, by their paths in the checkpoint."""


class Writing:
    """Runs a function that writes.

    Args:
        write: writes, and returns what it has written.
        name: of the thread.
        asynchronous: on a thread; else at once.
    """

    def __init__(self, write: Callable[[], Files], name: str, asynchronous: bool) -> None:
        self._files: Future[Files] = Future()
        if asynchronous:
            thread = ThreadPoolExecutor(1, thread_name_prefix=name)
            self._files = thread.submit(write)
            thread.shutdown(wait=False)
        else:
            self._files.set_result(write())

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return self._files.done()

    def result(self) -> Files:
        """What was written, once it is.

        Raises:
            CheckpointError: it can't be written.
        """
        return self._files.result()
