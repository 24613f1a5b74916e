"""Files that are being written, on a thread of their own or at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

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
        self._write = write
        self._files: Files = {}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if asynchronous:
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        else:
            self._files = write()

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> Files:
        """What was written, once it is.

        Raises:
            CheckpointError: it can't be written.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._files

    def _run(self) -> None:
        try:
            self._files = self._write()
        except BaseException as error:
            self._error = error
