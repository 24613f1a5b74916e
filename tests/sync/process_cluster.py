"""A cluster for tests: each replica is a process that takes calls from a pipe, and says it is on the node that it is
told to be on. Futures among arguments are resolved when a call is submitted.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from dataclasses import dataclass
from typing import Any

from chatlearn import errors
from chatlearn.errors import WorkerError
from chatlearn.modules.base import BaseModule, describe
from chatlearn.runtime.base import Handle, Location
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.wire import decode, encode
from chatlearn.runtime.worker import Worker


@dataclass
class Arriving:
    """The future of a call; calls of one replica end in order."""

    replica: Replica
    number: int

    def result(self) -> Any:
        return self.replica.answer(self.number)


class Replica:
    """The driver's side of a process."""

    def __init__(self, handle: Handle, payload: bytes) -> None:
        context = multiprocessing.get_context("forkserver")  # forks a process that has imported all this and no more
        context.set_forkserver_preload(["chatlearn.runtime.worker", "chatlearn.sync.carrier"])
        self.handle = handle
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_live, args=(there, payload), daemon=True)
        self.process.start()
        there.close()
        self._answers: list[Any] = []
        self._num_calls = 0

    def call(self, method: str, args: tuple[Any, ...]) -> Arriving:
        try:
            self.pipe.send_bytes(encode((method, args)))
        except OSError:
            raise WorkerError(f"{self.handle} died.") from None
        self._num_calls += 1
        return Arriving(self, self._num_calls - 1)

    def answer(self, number: int) -> Any:
        while len(self._answers) <= number:
            try:
                self._answers.append(decode(self.pipe.recv_bytes()))
            except (EOFError, OSError):
                raise WorkerError(f"{self.handle} died.") from None
        kind, value = self._answers[number]
        if kind:
            raise getattr(errors, kind, RuntimeError)(value)
        return value


class ProcessCluster:
    """Replicas as processes of this machine."""

    overlaps = True

    def __init__(self) -> None:
        self.replicas: dict[Handle, Replica] = {}
        self._nodes: dict[Handle, str] = {}

    def spawn(
        self, module: BaseModule, replica: int = 0, *, node: str = "a", model: Any = None, runtime: Any = None
    ) -> Handle:
        """Starts a process and runs ``setup`` there; a handle that is there already gets a new one."""
        handle = Handle(module.name, replica)
        settings = ReplicaSettings(0, {}, model, runtime)
        self.replicas[handle] = Replica(handle, encode((describe(module), replica, settings)))
        self._nodes[handle] = node
        self.get(self.call(handle, "setup"))
        return handle

    def location(self, handle: Handle) -> Location:
        return Location(self._nodes[handle], f"{self.replicas[handle].process.pid}")

    def call(self, handle: Handle, method: str, *args: Any) -> Arriving:
        values = tuple(arg.result() if isinstance(arg, Arriving) else arg for arg in args)
        return self.replicas[handle].call(method, values)

    def apply(self, handle: Handle, function: Any, *args: Any) -> Any:
        """Calls a function beside a module and waits."""
        return self.get(self.call(handle, "apply", function, *args))

    def get(self, future: Arriving) -> Any:
        return future.result()

    def kill(self, handle: Handle) -> None:
        """Ends a process as ``kill -9`` does."""
        self.replicas[handle].process.kill()
        self.replicas[handle].process.join()

    def shutdown(self) -> None:
        for replica in self.replicas.values():
            replica.process.kill()
            replica.process.join()
            replica.pipe.close()


def _live(pipe: Any, payload: bytes) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    worker = Worker(*decode(payload))
    while True:
        try:
            method, args = decode(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = "", getattr(worker, method)(*args)
        except Exception as error:
            kind = type(error).__name__
            answer = kind, str(error) if hasattr(errors, kind) else traceback.format_exc()
        pipe.send_bytes(encode(answer))
