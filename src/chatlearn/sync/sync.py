"""Keeps a rollout module in step with the trained one."""

from __future__ import annotations

from collections.abc import Sequence

from chatlearn.errors import SyncError
from chatlearn.runtime.base import Cluster, Handle
from chatlearn.sync.plan import SyncPlan, make_plan
from chatlearn.sync.transport import describe_weights, read_weights, write_weights


class ParameterSync:
    """One pair of modules.

    Args:
        cluster: where both live.
        source: the trained module's replica.
        destinations: all replicas of the rollout module.
    """

    def __init__(self, cluster: Cluster, source: Handle, destinations: Sequence[Handle]) -> None:
        self._cluster = cluster
        self._source = source
        self._destinations = destinations
        self.plan = self._make_plan()

    @property
    def modules(self) -> tuple[str, str]:
        """Names of the two modules."""
        return self.plan.source, self.plan.destination

    @property
    def note(self) -> str | None:
        """Why nothing is synced, if nothing is."""
        if self.plan:
            return None
        pair = f"{self.plan.source} -> {self.plan.destination}"
        return f"{pair}: neither module has parameters in `self.model`, so there is nothing to sync."

    def sync(self, version: int) -> None:
        """Copies the trained weights into every replica and waits until they are there.

        Raises:
            SyncError: a replica did not get what was sent.
        """
        if not self.plan:
            return
        transfers = list(self.plan.transfers)
        published = self._cluster.call(self._source, "apply", read_weights, transfers, version)
        arrivals = [
            self._cluster.call(handle, "apply", write_weights, transfers, published) for handle in self._destinations
        ]
        for handle, arrival in zip(self._destinations, arrivals, strict=True):
            if (arrived := self._cluster.get(arrival)) != version:
                raise SyncError(f"{handle} holds weights of version {arrived} after the sync of version {version}.")

    def _make_plan(self) -> SyncPlan:
        source, destination = self._source.module, self._destinations[0].module
        ours, theirs = (
            self._cluster.get(self._cluster.call(handle, "apply", describe_weights))
            for handle in (self._source, self._destinations[0])
        )
        if bool(ours) != bool(theirs):
            empty, full = (source, destination) if not ours else (destination, source)
            raise SyncError(
                f"{source} -> {destination}: {empty} has no parameters in `self.model`, but {full} has "
                f"{len(ours or theirs)} tensors. Set "
                f"`self.model` to a torch.nn.Module in {empty}.setup(), or drop the set_parameter_sync of this pair."
            )
        return make_plan(source, {0: ours}, destination, {0: theirs})
