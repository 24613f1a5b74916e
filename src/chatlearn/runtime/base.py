"""The contract of a cluster: where module replicas live and calls run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from chatlearn.config.registries import CLUSTERS
from chatlearn.config.schema import Config
from chatlearn.modules.base import Description
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.placement import NOTHING, Node, Placement, Resources


@dataclass(frozen=True)
class Handle:
    """A replica of a module, however many ranks it has."""

    module: str
    replica: int

    def __str__(self) -> str:
        return f"{self.module}[{self.replica}]"


@dataclass(frozen=True)
class Location:
    """Where a replica lives: equal ``process`` means the same memory, equal ``node`` the same machine."""

    node: str
    process: str


class Future(Protocol):
    """A value that a cluster holds or will hold. Pass it to further calls instead of fetching it."""

    def result(self) -> Any:
        """The value, once it is there; raises what the call raised."""
        ...


OnLoss = Callable[[Handle, Exception], None]


class Cluster(Protocol):
    """Data calls of one handle run in the order of submission; control calls overtake them.

    Futures among the arguments of a call, alone or inside tuples, dicts and :class:`~chatlearn.runtime.calls.Rows`,
    are resolved where the call runs.
    """

    @property
    def overlaps(self) -> bool:
        """Calls of different replicas may run at the same time."""
        ...

    def start(self, need: Resources = NOTHING) -> None:
        """Makes the cluster ready for :meth:`spawn` of replicas that need so much in all."""
        ...

    def nodes(self) -> list[Node]:
        """The machines; none where replicas are placed on no devices."""
        ...

    def reserve(self, placement: Placement) -> None:
        """Reserves the devices that replicas will sit on."""
        ...

    def spawn(self, description: Description, replica: int, settings: ReplicaSettings) -> Handle:
        """Begins to construct a replica (without ``setup``); what fails there is raised here or by its first call.

        A handle that is there already gets a new replica, as after :attr:`on_loss`.
        """
        ...

    def location(self, handle: Handle) -> Location:
        """Where a replica lives."""
        ...

    on_loss: OnLoss | None
    """Called with a replica that has died, and with what is known about it: either makes up for the replica
    (:meth:`spawn`, and whatever it has to be told before its unfinished calls run again), or raises."""

    def call(self, handle: Handle, method: str, *args: Any) -> Future:
        """Data call: ``method`` of the replica's :class:`~chatlearn.runtime.worker.Worker`.

        A replica that is gone gives a WorkerError, here or where the future is read.
        """
        ...

    def call_pair(self, handle: Handle, method: str, *args: Any) -> tuple[Future, Future]:
        """Data call of a method that returns two values: one future for each, so that one can stay where it is."""
        ...

    def control(self, handle: Handle, method: str, *args: Any) -> Any:
        """Control call: answers at once, also while a data call runs."""
        ...

    def put(self, value: Any) -> Future:
        """Makes a value of the driver available to calls."""
        ...

    def get(self, future: Future) -> Any:
        """The value of a future, in the driver."""
        ...

    def wait(self, futures: Sequence[Future], num: int = 1) -> tuple[list[Future], list[Future]]:
        """Waits until ``num`` futures are done (0: only looks); returns (done, not done)."""
        ...

    def keep_logs(self, folder: Path) -> None:
        """Has one file for the output of each worker in a folder; nothing where they write to the driver's own."""
        ...

    def stacks(self) -> dict[str, str]:
        """What every worker is executing: Python stacks by handle."""
        ...

    def kill(self, handle: Handle) -> None:
        """Ends a replica; one that is gone stays so."""
        ...

    def shutdown(self) -> None:
        """Ends everything that :meth:`start` and :meth:`spawn` made."""
        ...


def create_cluster(config: Config) -> Cluster:
    """The cluster that ``runtime_env.backend`` names."""
    module_name, class_name = CLUSTERS[config.runtime_env.backend].split(":")
    kind: Any = getattr(importlib.import_module(module_name), class_name)
    return kind.configured(config)
