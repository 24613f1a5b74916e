"""The cluster over Ray: every replica is an actor, and values go from actor to actor by reference."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import GetTimeoutError, ObjectLostError, RayError

from chatlearn.config.schema import Config
from chatlearn.errors import DataError, ModuleError, WorkerError
from chatlearn.modules.base import Description
from chatlearn.runtime.arguments import unsendable
from chatlearn.runtime.base import Future, Handle, Location, OnLoss
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.clients import refs_in
from chatlearn.runtime.placement import NOTHING, Node, Placement, Resources
from chatlearn.runtime.ray import api, session
from chatlearn.runtime.ray.environments import check_python
from chatlearn.runtime.ray.failures import Failed, original, restored
from chatlearn.runtime.ray.host import Host, Surroundings
from chatlearn.runtime.ray.losses import lost_with_node
from chatlearn.runtime.ray.payload import Argument, owned, packed, replaced, unpacked
from chatlearn.runtime.ray.relay import Relay
from chatlearn.runtime.ray.replicas import Replicas
from chatlearn.runtime.ray.reservation import Bundle, release, reserved
from chatlearn.runtime.ray.tasks import RayFuture, Task, Value
from chatlearn.runtime.ray.watch import PATIENCE, Hang, hang_limit, stacks, wait_for_any
from chatlearn.runtime.wire import encode

_ACTOR = api.actor_class(Host, concurrency_groups={"questions": 1, "control": 2})


class RayCluster:
    """Replicas as actors of a Ray that is joined, or started for as long as they live.

    Args:
        address: of the Ray to join; ``None`` starts one.
        hang_timeout: seconds without any call ending after which a wait ends with a report.
    """

    on_loss: OnLoss | None = None

    def __init__(self, address: str | None = None, hang_timeout: float | None = None) -> None:
        self._address, self._hang_timeout = address, hang_timeout
        self._machines: list[session.Machine] = []
        self._bundles: dict[Handle, Bundle] = {}
        self._replicas = Replicas()
        self._open: dict[int, Task] = {}
        self._last: dict[Handle, Task] = {}
        self._relay: Any = None
        self._number = self._num_spawned = 0
        self._hang: Hang | None = None
        self._is_running = False

    @classmethod
    def configured(cls, config: Config) -> RayCluster:
        """The cluster that a configuration describes."""
        return cls(config.runtime_env.address, config.runtime.hang_timeout_seconds)

    @property
    def overlaps(self) -> bool:
        """Always: replicas are processes."""
        return True

    def start(self, need: Resources = NOTHING) -> None:
        """Joins Ray or starts one.

        Raises:
            WorkerError: that can't be done.
        """
        session.connect(self._address, need)
        self._is_running = True
        self._machines = session.machines()

    def nodes(self) -> list[Node]:
        """The machines of the cluster, the driver's first."""
        return list(self._machines)

    def reserve(self, placement: Placement) -> None:
        """Reserves the devices that these replicas sit on, in one placement group for each node.

        Raises:
            WorkerError: somebody else has them.
        """
        self._bundles = reserved(placement, self._machines)

    def spawn(self, description: Description, replica: int, settings: ReplicaSettings) -> Handle:
        """Begins to construct a replica in a process of its own.

        Raises:
            ModuleError: its class or its arguments can't be sent there.
            WorkerError: the Python environment that it asks for lacks something.
        """
        handle = Handle(description.name, replica)
        try:
            payload = packed((description, replica, settings))
        except DataError as error:
            raise ModuleError(unsendable(description) or f"models.{handle.module}: {error}") from None
        actor = _ACTOR.options(**self._options(handle, settings)).remote(str(handle))
        task = Task(handle, "construct", (), "call")
        arguments = [payload] if isinstance(payload, bytes) else payload
        task.ending = actor.construct.remote(encode(Surroundings.of_this_process()), *arguments)
        self._num_spawned += 1
        task.number = -self._num_spawned  # before all calls
        self._open[id(task)] = task
        self._replicas.add(handle, actor, RayFuture(task, None, self.get), settings.replaceable)
        return handle

    def location(self, handle: Handle) -> Location:
        """Node and process of a replica, once it is constructed."""
        identity = self._replicas.identity(handle)
        return Location(identity.node, f"{identity.node}/{identity.pid}")

    def call(self, handle: Handle, method: str, *args: Any) -> Future:
        """Submits a data call; what it raises is raised where its value is read."""
        if method == "fetch":  # large, and for other workers
            return self._submitted_with_value(Task(handle, method, args, "call_apart"))
        return RayFuture(self._submitted(Task(handle, method, args, "call")), None, self.get)

    def call_pair(self, handle: Handle, method: str, *args: Any) -> tuple[Future, Future]:
        """As :meth:`call`; a future for each of the two values that it returns."""
        output = self._submitted_with_value(Task(handle, method, args, "call_pair"))
        return output, RayFuture(output.task, None, self.get)

    def control(self, handle: Handle, method: str, *args: Any) -> Any:
        """Calls past the data calls of a replica."""
        actor = self._replicas.actor(handle)
        if self._relay is None:
            self._relay = api.actor_class(Relay, num_cpus=0, max_concurrency=16).remote()
        answer = self._relay.control.remote(actor, encode((method, args)))
        try:
            return unpacked(api.get(answer))
        except RayError as error:
            failure = self._replicas.error(original(error))
        raise failure

    def put(self, value: Any) -> Future:
        """Stores a value of the driver."""
        task = Task(Handle("driver", 0), "put", (), "call")
        task.ending = api.put(packed(value))
        task.end()
        return RayFuture(task, None, self.get)

    def get(self, future: Any) -> Any:
        """The value of a future, in the driver."""
        task: Task = future.task
        self._finish(task)
        if task.error is not None:
            raise task.error
        if future.value is None and task.receipt is not None:
            return owned(task.receipt)
        try:
            return owned(api.get(future.ref))
        except RayError as error:
            failure = self._replicas.error(original(error))
        raise failure

    def wait(self, futures: Sequence[Any], num: int = 1) -> tuple[list[Future], list[Future]]:
        """Waits until ``num`` futures are done (0: only looks)."""
        while True:
            waiting = list({id(f.task): f.task for f in futures if not f.task.done}.values())
            missing = num - sum(f.task.done for f in futures)
            if waiting:
                refs = {task.ending: task for task in waiting}
                if missing > 0:
                    self._await(list(refs))
                for ref in api.ready(list(refs)):
                    self._look(refs[ref])
            if missing <= 0 or not waiting:
                return [f for f in futures if f.task.done], [f for f in futures if not f.task.done]

    def keep_logs(self, folder: Path) -> None:
        """Has one file for the output of each worker in a folder."""
        self._replicas.keep_logs(folder)

    def stacks(self) -> dict[str, str]:
        """What every worker is executing: Python stacks by handle."""
        return stacks({handle: self._replicas.identity(handle) for handle in self._replicas})

    def kill(self, handle: Handle) -> None:
        """Ends the process of a replica."""
        self._replicas.kill(handle)

    def shutdown(self) -> None:
        """Ends all replicas, and Ray if it was started here."""
        if not self._is_running:
            return
        self._is_running = False
        self._replicas.end()
        release(self._bundles.values())
        self._bundles = {}
        self._open.clear()
        self._last.clear()
        session.disconnect()

    def _options(self, handle: Handle, settings: ReplicaSettings) -> dict[str, Any]:
        bundle = self._bundles.get(handle)
        options = bundle.options() if bundle is not None else {"num_cpus": 0}
        python = getattr(settings.module_args, "python", None)
        if python is None:
            return options
        node = bundle.node if bundle is not None else self._machines[0].id
        check_python(f"models.{handle.module}.python", python, node)
        return {**options, "runtime_env": {"py_executable": python}}

    # -- calls --

    def _submitted_with_value(self, task: Task) -> RayFuture:
        value = Value()
        task.value = weakref.ref(value)
        return RayFuture(self._submitted(task), value, self.get)

    def _submitted(self, task: Task) -> Task:
        actor = self._replicas.actor(task.handle)
        refs: list[Any] = []
        task.inputs = []

        def lifted(future: RayFuture) -> Argument:
            if not future.task.done:
                task.inputs.append(future.task)
            refs.append(future.ref)
            return Argument(len(refs) - 1)

        args = replaced(task.args, RayFuture, lifted)
        peers = self._peers(task)
        for before in self._before(task, peers):
            task.inputs.append(before)
            refs.append(before.ending)
        made: Any = getattr(actor, task.way).remote(_head(task, args), peers or b"", *refs)
        if task.way == "call":
            task.ending = made
        else:
            ref, task.ending = made
            if (value := task.value()) is not None:
                value.ref = ref
        self._number += 1
        task.number, task.submitted = task.number or self._number, time.monotonic()
        task.before = self._last.get(task.handle)
        self._open[id(task)] = self._last[task.handle] = task
        return task

    def _peers(self, task: Task) -> dict[str, list[Any]] | None:
        """The actors that a step may ask."""
        if task.method != "run" or not (constants := task.args[0].constants):
            return None
        actor = self._replicas.actor
        return {ref.name: [actor(Handle(ref.name, i)) for i in range(ref.num_replica)] for ref in refs_in(constants)}

    def _before(self, task: Task, peers: Mapping[str, Any] | None) -> list[Task]:
        """Calls that have to end before this one begins, for the sake of replicas that keep state: Ray keeps the order
        of calls, but one whose inputs failed would be passed by.
        """
        before: list[Task] = []
        for handle in (task.handle, *[Handle(name, 0) for name in peers or ()]):
            if self._replicas.is_replaceable(handle):
                continue
            last = self._last.get(handle)
            if last is not None and not last.done:
                asks = handle != task.handle or last.handle != handle
                if asks or any(not each.done for each in last.inputs):
                    before.append(last)
            if handle != task.handle:
                self._last[handle] = task
        return before

    def _finish(self, task: Task) -> None:
        while not task.done:
            if self._end_or_cause(task, PATIENCE) is not None:
                self._make_up()
            if not task.done:
                self._await([task.ending])

    def _look(self, task: Task) -> None:
        """Takes what a call that has ended left behind; a replica that was lost is made up for."""
        if not task.done and self._end_or_cause(task) is not None:
            self._make_up()

    def _end(self, task: Task, receipt: Any, error: Exception | None = None) -> None:
        ended = [task]
        while ended:
            each = ended.pop()
            if not each.done:
                if error is None:
                    ended += each.inputs
                each.end(receipt if each is task else None, error if each is task else None)
                self._open.pop(id(each), None)

    # -- failures --

    def _make_up(self) -> None:
        """Finds the replicas that were lost, has them made up for, and submits again what was lost with them.

        Raises:
            WorkerError: they can't be made up for.
        """
        lost: dict[Handle, BaseException] = {}
        again: list[Task] = []
        while self._open:
            waiting = list(self._open.values())
            self._await([task.ending for task in waiting])
            there = set(api.ready([task.ending for task in waiting]))
            for task in waiting:
                if task.ending in there and (cause := self._end_or_cause(task)) is not None:
                    del self._open[id(task)]
                    again.append(task)
                    lost.setdefault(self._replicas.lost(task, cause), cause)
        again.sort(key=lambda task: task.number)
        if lost and (gone := lost_with_node(self._replicas.known(), again)) is not None:
            raise gone
        for handle, cause in lost.items():
            if isinstance(cause, ObjectLostError):  # none of those that it may be has died
                raise self._replicas.error(cause)
            if self._replicas.is_alive(handle, cause):  # it has been made up for already
                continue
            running = next((task for task in again if task.handle == handle), None)
            error = self._replicas.loss(handle, cause, running)
            if self.on_loss is None:
                raise error
            self.on_loss(handle, error)
        for task in again:
            if task.method == "construct":  # another has been made
                self._end(task, None, WorkerError(f"{task.handle} died before it was constructed."))
            else:
                self._submitted(task)

    def _end_or_cause(self, task: Task, timeout: float | None = None) -> BaseException | None:
        """Takes what a call has left behind that ends within ``timeout`` seconds; returns why it is to be run again, if
        it is.
        """
        try:
            self._end(task, api.get(task.ending, timeout=timeout))
        except GetTimeoutError:
            return None
        except RayError as error:
            cause = original(error)
            if not isinstance(cause, Failed) or cause.lost is not None:
                return cause
            self._end(task, None, restored(cause))
        return None

    def _await(self, refs: list[Any]) -> None:
        """Waits until one of these is there.

        Raises:
            WorkerError: nothing has ended for too long; at once, where it has been said before and nothing has since.
        """
        if self._hang is not None and self._hang.keeps(refs):
            raise WorkerError(self._hang.report)
        limit = hang_limit(self._open.values(), self._hang_timeout)
        if not wait_for_any(refs, lambda: [task.ending for task in self._open.values()], limit):
            for task in list(self._open.values()):
                if api.ready([task.ending]):
                    self._end_or_cause(task)
            self._hang = Hang(list(self._open.values()), self._replicas.known(), limit or 0)
            raise WorkerError(self._hang.report)


def _head(task: Task, args: tuple[Any, ...]) -> bytes:
    """The method of a call, and its arguments where futures have their numbers.

    Raises:
        DataError: one can't be sent.
    """
    try:
        return encode((task.method, args))
    except DataError as error:
        raise DataError(f"The arguments of {task}: {error}") from None
