"""The contract of a cluster: where module replicas live and calls run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chatlearn.modules.base import Description
from chatlearn.runtime.calls import ReplicaSettings

CLUSTERS = {"local": "chatlearn.runtime.local:LocalCluster"}
"""``runtime_env.backend`` -> import path of the class; the engine finds clusters here and names none."""


@dataclass(frozen=True)
class Handle:
    """A replica of a module, however many ranks it has."""

    module: str
    replica: int

    def __str__(self) -> str:
        return f"{self.module}[{self.replica}]"


class Future(Protocol):
    """A value that a cluster holds or will hold. Pass it to further calls instead of fetching it."""

    def result(self) -> Any:
        """The value, once it is there; raises what the call raised."""
        ...


class Cluster(Protocol):
    """Data calls of one handle run in the order of submission; control calls overtake them.

    Futures among the arguments of a call, alone or inside tuples, dicts and :class:`~chatlearn.runtime.calls.Rows`,
    are resolved where the call runs.
    """

    def start(self) -> None:
        """Makes the cluster ready for :meth:`spawn`."""
        ...

    def spawn(self, description: Description, replica: int, settings: ReplicaSettings) -> Handle:
        """Constructs a replica (without ``setup``)."""
        ...

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

    def stacks(self) -> dict[str, str]:
        """What every worker is executing: Python stacks by handle."""
        ...

    def kill(self, handle: Handle) -> None:
        """Ends a replica; one that is gone stays so."""
        ...

    def shutdown(self) -> None:
        """Ends everything that :meth:`start` and :meth:`spawn` made."""
        ...


def create_cluster(backend: str, **options: Any) -> Cluster:
    """The cluster that ``runtime_env.backend`` names."""
    module_name, class_name = CLUSTERS[backend].split(":")
    cluster: Callable[..., Cluster] = getattr(importlib.import_module(module_name), class_name)
    return cluster(**options)
