"""The embedded cluster: replicas are objects of this process.

Calls run inline in the calling thread, in the order of submission; with ``threads`` those of modules that declare
``thread_safe`` overlap.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from chatlearn.config.schema import Config
from chatlearn.errors import WorkerError
from chatlearn.modules.base import Description
from chatlearn.runtime.arguments import copied_arguments
from chatlearn.runtime.base import Future, Handle, Location, OnLoss
from chatlearn.runtime.calls import ReplicaSettings, Report, StepCall
from chatlearn.runtime.clients import refs_in
from chatlearn.runtime.futures import Done, Part, Pending, resolved
from chatlearn.runtime.placement import NOTHING, Node, Placement, Resources
from chatlearn.runtime.seeding import preserved_globals
from chatlearn.runtime.threads import Threads, Turn
from chatlearn.runtime.watchdog import Watchdog
from chatlearn.runtime.wire import carried
from chatlearn.runtime.worker import Worker
from chatlearn.types import Batch

_AT_ONCE = frozenset({"fetch", "lengths", "build_dataset"})
"""Methods that take no part in the order of a replica's calls: data sets are read by the driver's thread."""


class LocalCluster:
    """Runs everything in the calling thread, so that ``pdb`` and Ctrl-C just work; overlap is opt-in.

    Args:
        isolate: send every argument and result through the wire format, as if workers were processes of their own.
        threads: with more than one, the steps of modules that declare ``thread_safe`` run on so many threads.
        hang_timeout: seconds without any call ending after which a note tells what runs; ``None``: never.
    """

    on_loss: OnLoss | None = None  # the process is lost as a whole

    def __init__(self, isolate: bool = False, threads: int = 1, hang_timeout: float | None = None) -> None:
        self._isolate = isolate
        self._watchdog = Watchdog(hang_timeout)
        self._num_threads = threads
        self._threads: Threads | None = None
        self._workers: dict[Handle, Worker] = {}
        self._turns: dict[Handle, Turn] = {}

    @classmethod
    def configured(cls, config: Config) -> LocalCluster:
        """The cluster that a configuration describes."""
        return cls(config.runtime_env.isolate, config.runtime_env.local_threads, config.runtime.hang_timeout_seconds)

    @property
    def overlaps(self) -> bool:
        """With threads."""
        return self._num_threads > 1

    def start(self, need: Resources = NOTHING) -> None:
        """Makes the threads, if there are any; the process is there."""
        self._watchdog.start()
        if self._num_threads > 1:
            self._threads = Threads(self._num_threads)

    def nodes(self) -> list[Node]:
        """None: one process places nothing on devices."""
        return []

    def location(self, handle: Handle) -> Location:
        """This process."""
        return Location("here", "here")

    def reserve(self, placement: Placement) -> None:
        """Reserves nothing."""

    def keep_logs(self, folder: Path) -> None:
        """Keeps none: all is written to this process's output."""

    def spawn(self, description: Description, replica: int, settings: ReplicaSettings) -> Handle:
        """Constructs a replica in this process."""
        handle = Handle(description.name, replica)
        overlaps = self._num_threads > 1 and description.module_class.thread_safe
        settings = replace(settings, seeds_globals=not overlaps)
        if self._isolate:
            copied_arguments(description)  # names what can't be copied
        worker = self._workers[handle] = Worker(*self._carried((description, replica, settings)))
        worker.ask = partial(self._ask, handle)
        if self._threads is not None:
            worker.turn = self._turns[handle] = self._threads.turn()
        return handle

    def call(self, handle: Handle, method: str, *args: Any) -> Future:
        """Runs the call now, and a failure raises here, with its own traceback; with threads, as soon as its inputs
        are there.
        """
        worker = self._worker(handle)
        if self._threads is None or method in _AT_ONCE:
            return Done(self._run(worker, handle, method, self._carried(resolved(args))))

        def run(*arguments: Any) -> Any:
            return self._run(worker, handle, method, self._carried(arguments))

        pooled = method == "run" and not worker.settings.seeds_globals
        trains = method == "run" and args[0].phase == "train"
        return self._threads.submit(self._orders(handle, method, args), pooled, run, args, ahead=trains)

    def _run(self, worker: Worker, handle: Handle, method: str, args: tuple[Any, ...]) -> Any:
        outer = self._watchdog.begin(handle, method, args)
        try:
            return self._carried(getattr(worker, method)(*args))
        finally:
            self._watchdog.end(outer)

    def _orders(self, handle: Handle, method: str, args: tuple[Any, ...]) -> tuple[Handle, ...]:
        """The replicas in whose order a call stands: its own, and those of the stateful modules that its step is given
        to ask.
        """
        constants: Mapping[str, Any] = args[0].constants if method == "run" else {}
        asked = dict.fromkeys(Handle(ref.name, 0) for ref in refs_in(constants))  # stateful: it has one replica
        return (handle, *(other for other in asked if self._worker(other).module.stateful))

    def call_pair(self, handle: Handle, method: str, *args: Any) -> tuple[Future, Future]:
        """As :meth:`call`; a future for each of the two values that it returns."""
        future = self.call(handle, method, *args)
        if isinstance(future, Pending):
            return Part(future, 0), Part(future, 1)
        first, second = future.result()
        return Done(first), Done(second)

    def _ask(
        self, asker: Handle, module: str, replica: int, call: StepCall, data: tuple[Batch, ...]
    ) -> tuple[Any, Report]:
        """A call from inside a step of another module, which waits for it. What is not thread-safe runs on the
        driver's thread, before anything else there, and the generators of the caller are given back to it.
        """
        asked = Handle(module, replica)
        worker = self._worker(asked)

        def run() -> tuple[Any, Report]:
            with preserved_globals() if worker.settings.seeds_globals else nullcontext():
                return self._run(worker, asked, "answer", self._carried((call, data)))

        if self._threads is None:
            return run()
        turn = self._turns[asker]
        with self._threads.asking(turn, self._turns[asked]):
            return self._threads.run_on_driver(run, turn) if worker.settings.seeds_globals else run()

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
        """Without threads everything is done already."""
        pending = [future.whole for future in futures if isinstance(future, (Pending, Part))]
        if self._threads is not None and pending:
            self._threads.wait(pending, max(num - (len(futures) - len(pending)), 0))
        done = [f for f in futures if not isinstance(f, (Pending, Part)) or f.whole.done]
        return done, [f for f in futures if isinstance(f, (Pending, Part)) and not f.whole.done]

    def stacks(self) -> dict[str, str]:
        """The Python stack of each thread of this process."""
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # Python documents it for this use
        return {f"thread {i}": "".join(traceback.format_stack(frame)) for i, frame in frames.items()}

    def kill(self, handle: Handle) -> None:
        """Forgets a replica."""
        self._workers.pop(handle, None)
        self._turns.pop(handle, None)

    def shutdown(self) -> None:
        """Waits for the steps that run, drops those that don't yet, and forgets all replicas."""
        self._watchdog.stop()
        if self._threads is not None:
            self._threads.stop()
            self._threads = None
        self._workers.clear()
        self._turns.clear()

    def _worker(self, handle: Handle) -> Worker:
        if handle not in self._workers:
            raise WorkerError(f"{handle} is not running: it was killed, or the cluster was shut down.")
        return self._workers[handle]

    def _carried(self, value: Any) -> Any:
        return carried(value) if self._isolate else value
