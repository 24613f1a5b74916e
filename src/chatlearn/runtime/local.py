"""The embedded cluster: replicas are objects of this process, calls run inline in the calling thread, in the order of
submission.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatlearn.errors import WorkerError
from chatlearn.modules.base import Description
from chatlearn.runtime.base import Future, Handle
from chatlearn.runtime.wire import decode, encode
from chatlearn.runtime.worker import ReplicaSettings, Rows, Worker


@dataclass(frozen=True)
class Done:
    """A future that is there already."""

    value: Any

    def result(self) -> Any:
        """The value."""
        return self.value


class LocalCluster:
    """Runs everything in the calling thread, so that ``pdb`` and Ctrl-C just work.

    Args:
        isolate: send every argument and result through the wire format, as if workers were processes of their own.
    """

    def __init__(self, isolate: bool = False) -> None:
        self._isolate = isolate
        self._workers: dict[Handle, Worker] = {}

    def start(self) -> None:
        """Nothing to do: the process is there."""

    def spawn(self, description: Description, replica: int, settings: ReplicaSettings) -> Handle:
        """Constructs a replica in this process."""
        handle = Handle(description.name, replica)
        self._workers[handle] = Worker(*self._carried((description, replica, settings)))
        return handle

    def call(self, handle: Handle, method: str, *args: Any) -> Future:
        """Runs the call now; a failure raises here, with its own traceback."""
        arguments = self._carried(_resolved(args))
        return Done(self._carried(getattr(self._worker(handle), method)(*arguments)))

    def call_pair(self, handle: Handle, method: str, *args: Any) -> tuple[Future, Future]:
        """Runs the call now; a future for each of the two values that it returns."""
        first, second = self.call(handle, method, *args).result()
        return Done(first), Done(second)

    def control(self, handle: Handle, method: str, *args: Any) -> Any:
        """Runs the call now."""
        return self._carried(getattr(self._worker(handle), method)(*self._carried(args)))

    def put(self, value: Any) -> Future:
        """A future of a value that is there."""
        return Done(value)

    def get(self, future: Future) -> Any:
        """The future's value."""
        return future.result()

    def wait(self, futures: Sequence[Future], num: int = 1) -> tuple[list[Future], list[Future]]:
        """Everything is done already."""
        return list(futures), []

    def stacks(self) -> dict[str, str]:
        """The Python stack of each thread of this process."""
        return {f"thread {i}": "".join(traceback.format_stack(frame)) for i, frame in sys._current_frames().items()}

    def kill(self, handle: Handle) -> None:
        """Forgets a replica."""
        self._workers.pop(handle, None)

    def shutdown(self) -> None:
        """Forgets all replicas."""
        self._workers.clear()

    def _worker(self, handle: Handle) -> Worker:
        if handle not in self._workers:
            raise WorkerError(f"{handle} is not running: it was killed, or the cluster was shut down.")
        return self._workers[handle]

    def _carried(self, value: Any) -> Any:
        return decode(encode(value)) if self._isolate else value


def _resolved(value: Any) -> Any:
    """``value`` with each future in it replaced by what it holds; lists are data and not searched."""
    if isinstance(value, Done):
        return value.value
    if type(value) is tuple:
        return tuple(_resolved(part) for part in value)
    if type(value) is dict:
        return {key: _resolved(part) for key, part in value.items()}
    if isinstance(value, Rows):
        return replace(value, sources=_resolved(value.sources))
    return value
