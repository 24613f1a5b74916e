"""Files that are being written, on a thread of their own or at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from chatlearn.checkpoint.disk import Written, sync_all

Files = dict[str, Written]
"""Files by their paths in the checkpoint."""


class Writing:
    """Writes files of a checkpoint.

    Args:
        write: writes, and returns what it has written.
        folder: of the checkpoint.
        name: of the thread.
        asynchronous: on a thread; else at once, but :meth:`result` forces them to the disk: after others have written
            too, that takes little longer for all than for one.
    """

    def __init__(self, write: Callable[[], Files], folder: Path, name: str, asynchronous: bool) -> None:
        self._write, self._folder, self._is_synced = write, folder, asynchronous
        self._files: Future[Files] = Future()
        if asynchronous:
            thread = ThreadPoolExecutor(1, thread_name_prefix=name)
            self._files = thread.submit(self._written_and_synced)
            thread.shutdown(wait=False)
        else:
            self._files.set_result(write())

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`result` would not wait."""
        return self._files.done()

    def result(self) -> Files:
        """What was written, once it is on the disk.

        Raises:
            CheckpointError: it can't be written.
        """
        files = self._files.result()
        return files if self._is_synced else self._synced(files)

    def _written_and_synced(self) -> Files:
        return self._synced(self._write())

    def _synced(self, files: Files) -> Files:
        sync_all(*(self._folder / name for name in files))
        return files
