"""Runs that go on from their last checkpoint by themselves, after a replica has died that can't be replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from chatlearn.checkpoint.run_folder import RunFolder
from chatlearn.checkpoint.store import CheckpointStore
from chatlearn.runtime.lost import LostReplicaError


class Restarts:
    """The folders to run in: the one that was claimed, and again after each death that a restart makes up for.

    Args:
        folder: claimed for the run.
        limit: number of restarts.
    """

    def __init__(self, folder: RunFolder, limit: int) -> None:
        self._folder: RunFolder | None = folder
        self._limit, self._count = limit, 0
        self._last = folder

    def __iter__(self) -> Iterator[RunFolder]:
        while self._folder is not None:
            self._last, self._folder = self._folder, None
            yield self._last

    def follows(self, error: BaseException) -> bool:
        """Whether the run goes on after an error; then the next folder is that of its newest checkpoint."""
        if not isinstance(error, LostReplicaError) or self._count >= self._limit:
            return False
        try:
            checkpoint = CheckpointStore(self._last.checkpoints).latest()
        except OSError:  # the error that is on its way says more
            checkpoint = None
        if checkpoint is None:
            return False
        self._count += 1
        print(f"{error}\nThe run goes on from {checkpoint} (restart {self._count} of {self._limit}).", flush=True)
        self._folder = replace(self._last, checkpoint=checkpoint, note="")
        return True


def close_after(error: BaseException, *functions: Callable[[], Any]) -> None:
    """Calls all functions on the way out of an error. What they raise is told, and the error itself comes out."""
    try:
        with ExitStack() as stack:
            for function in reversed(functions):
                stack.callback(function)
    except Exception as problem:
        print(f"note: while the run was closed: {type(problem).__name__}: {problem}", flush=True)
        raise error from error.__cause__
