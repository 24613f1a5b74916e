"""Keeps a rollout module in step with the trained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chatlearn.errors import SyncError
from chatlearn.runtime.base import Cluster, Handle
from chatlearn.sync.plan import SyncPlan, make_plan
from chatlearn.sync.transport import Described, describe_view, read_weights, write_weights


class ParameterSync:
    """One pair of modules.

    Tensors that neither side's steps change (what lies under adapters) travel with the first sync, and not at all
    where both sides are known to have the same.

    Args:
        cluster: where both live.
        source: the trained module's replica.
        destinations: all replicas of the rollout module.
    """

    def __init__(self, cluster: Cluster, source: Handle, destinations: Sequence[Handle]) -> None:
        self._cluster = cluster
        self._source = source
        self._destinations = destinations
        self._merged = False
        self._fixed = frozenset[str]()
        self._has_synced = False
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
        known = self._fixed if self._has_synced else frozenset[str]()
        transfers = [transfer for transfer in self.plan.transfers if transfer.name not in known]
        published = self._cluster.call(self._source, "apply", read_weights, transfers, version, self._merged)
        arrivals = [
            self._cluster.call(handle, "apply", write_weights, transfers, published) for handle in self._destinations
        ]
        for handle, arrival in zip(self._destinations, arrivals, strict=True):
            if (arrived := self._cluster.get(arrival)) != version:
                raise SyncError(f"{handle} holds weights of version {arrived} after the sync of version {version}.")
        self._has_synced = True

    def _describe(self, handle: Handle, merged: bool = False) -> Described:
        return self._cluster.get(self._cluster.call(handle, "apply", describe_view, merged))

    def _make_plan(self) -> SyncPlan:
        source, destination = self._source.module, self._destinations[0].module
        ours, theirs = self._describe(self._source), self._describe(self._destinations[0])
        if bool(ours.held) != bool(theirs.held):
            empty, full = (source, destination) if not ours.held else (destination, source)
            raise SyncError(
                f"{source} -> {destination}: {empty} has no parameters in `self.model`, but {full} has "
                f"{len(ours.held or theirs.held)} tensors. Set "
                f"`self.model` to a torch.nn.Module in {empty}.setup(), or drop the set_parameter_sync of this pair."
            )
        self._merged = bool(theirs.held) and ours.scales is not None and theirs.scales is None
        if self._merged:
            ours = self._describe(self._source, merged=True)
        else:
            check_adapters(source, ours.scales, destination, theirs.scales)
            _check_whole(source, ours.whole, destination, theirs.whole)
        self._fixed = ours.fixed
        plan = make_plan(source, {0: ours.held}, destination, {0: theirs.held})
        if ours.scales is None or not _same_dtypes(ours, theirs):
            return plan
        if ours.base != theirs.base:
            raise SyncError(
                f"{source} -> {destination}: the adapters of both stand on different base models. Give "
                f"models.{source}.args.model_path and models.{destination}.args.model_path the same folder."
            )
        return replace(plan, transfers=tuple(t for t in plan.transfers if t.name not in ours.fixed))


def check_adapters(
    source: str, ours: Mapping[str, float] | None, destination: str, theirs: Mapping[str, float] | None
) -> None:
    """Adapters that are filled by name have to mean the same.

    Args:
        source: name of the trained module.
        ours: layer -> factor of its adapter; ``None``: the module has no adapters.
        destination: name of the rollout module.
        theirs: as ``ours``.

    Raises:
        SyncError: the source has no adapters and the destination has, or they are on other layers or of another factor.
    """
    pair, keys = f"{source} -> {destination}", f"models.{source}.args.lora and models.{destination}.args.lora"
    if ours is None and theirs is not None:
        raise SyncError(
            f"{pair}: {destination} has adapters, but {source} has none that could fill them. Set models.{source}.args."
            f"lora too, or take it from {destination}."
        )
    ours, theirs = ours or {}, theirs or {}
    if alone := sorted(ours.keys() ^ theirs.keys()):
        raise SyncError(
            f"{pair}: {len(alone)} layers have an adapter on one side only, such as {alone[0]} in "
            f"{source if alone[0] in ours else destination}. Make {keys} the same."
        )
    if others := [name for name in ours if ours[name] != theirs[name]]:
        raise SyncError(
            f"{pair}: the adapters are multiplied by {ours[others[0]]:g} in {source} and by {theirs[others[0]]:g} in "
            f"{destination} (alpha / r, of {others[0]}). Make {keys} the same."
        )


def _check_whole(source: str, ours: frozenset[str], destination: str, theirs: frozenset[str]) -> None:
    """The same layers are trained whole beside the adapters."""
    if alone := sorted(ours ^ theirs):
        raise SyncError(
            f"{source} -> {destination}: {alone[0]} is trained whole (modules_to_save) in "
            f"{source if alone[0] in ours else destination} only. Make models.{source}.args.lora and "
            f"models.{destination}.args.lora the same."
        )


def _same_dtypes(ours: Described, theirs: Described) -> bool:
    """Of the fixed tensors, whose fingerprints can be compared then."""
    return all(ours.held[name].dtype == theirs.held[name].dtype for name in ours.fixed if name in ours.held)
