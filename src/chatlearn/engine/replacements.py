"""Replicas that die within a run, and others in their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chatlearn.runtime.base import Handle
from chatlearn.runtime.lost import LostReplicaError

if TYPE_CHECKING:
    from chatlearn.engine.deployment import Deployment


class Replacements:
    """Puts a new replica in the place of one that has died, and brings it to where its peers are.

    Args:
        deployment: that the replicas belong to.
        note: is told of each replacement.
    """

    def __init__(self, deployment: Deployment, note: Callable[[str], None]) -> None:
        self._deployment, self._note = deployment, note
        self._counts: dict[Handle, int] = {}

    def replace(self, handle: Handle, error: Exception) -> None:
        """Replaces a replica; its unfinished calls can be run again afterwards.

        Raises:
            LostReplicaError: it can't be replaced, or has been too often.
        """
        deployment, limit = self._deployment, self._deployment.config.runtime.max_replacements
        name = handle.module
        if name not in deployment.lasting:
            raise error  # it did not get through its first setup
        if not deployment.is_replaceable(name):
            raise LostReplicaError(f"{error}\n{self._why_not(name)}")
        count = self._counts[handle] = self._counts.get(handle, 0) + 1
        if count > limit:
            times = "was not to be replaced" if not limit else f"has been replaced {limit} times already"
            raise LostReplicaError(f"{error}\n{handle} {times} (runtime.max_replacements: {limit}).")
        self._note(f"{error}\n{handle} is replaced, and what it had not finished runs again.")
        start = time.monotonic()
        cluster = deployment.cluster
        deployment.spawn(name, handle.replica)
        cluster.location(handle)
        for method, args in deployment.lasting[name]:
            if method != "build_dataset" or handle.replica == 0:
                cluster.get(cluster.call(handle, method, *args))
        cluster.get(cluster.call(handle, "take_report"))  # what was logged and put has been counted before
        if deployment.shared:
            cluster.get(cluster.call(handle, "share", dict(deployment.shared)))
        for module, restore in deployment.restorers:
            if module == name:
                restore(handle)
        if tags := deployment.given_up(name):
            cluster.get(cluster.call(handle, "move", "offload", tags))
        self._note(f"{handle} is back after {time.monotonic() - start:.1f} s.")

    def _why_not(self, name: str) -> str:
        why = "is trained" if self._deployment.trains(name) else "keeps state between calls (`stateful = True`)"
        return f"{name} {why}, so another replica can't take its place."
