"""Keeps a rollout module in step with the trained one, in whatever way leads to each of its replicas."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from chatlearn.errors import ChatLearnError, SyncError, WorkerError
from chatlearn.runtime.base import Cluster, Handle
from chatlearn.sync.buckets import Pair
from chatlearn.sync.carrier import Arrival, Carrier
from chatlearn.sync.layout import make_layout
from chatlearn.sync.plan import SyncPlan, make_plan
from chatlearn.sync.transport import Described, describe_view, read_weights, write_weights


class ParameterSync:
    """One pair of modules.

    Tensors that neither side's steps change (what lies under adapters) travel with the first sync, and not at all
    where both sides are known to have the same. To a replica in the source's process weights go by reference, on the
    source's machine through shared memory, and elsewhere in chunks that the cluster carries.

    Args:
        cluster: where both live.
        source: the trained module's replica.
        destinations: all replicas of the rollout module.

    Raises:
        SyncError: the weights of one side don't fit the other.
    """

    def __init__(self, cluster: Cluster, source: Handle, destinations: Sequence[Handle]) -> None:
        self._cluster = cluster
        self._source = source
        self._destinations = destinations
        self._merged = False
        self._has_synced = False
        ours, theirs = self._describe(source), self._describe(destinations[0])
        self._check_sides(ours, theirs)
        if self._merged:
            ours = self._describe(source, merged=True)
        self._fixed = ours.fixed
        self.plan = self._make_plan(ours, theirs)
        layout = make_layout(
            self.plan.transfers,
            ours.held,
            theirs.held,
            ours.fixed,
            widen=theirs.shares,
            largest_chunk=ours.largest_chunk,
        )
        pair = Pair(uuid.uuid4().hex, str(source), destinations[0].module, layout, self._merged, theirs.shares)
        self._carrier = Carrier(cluster, source, pair)

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
            WorkerError: a replica is gone; all others have the weights then, and :meth:`restore` gives them to the one
                that takes its place.
        """
        synchronise([self], version)

    def restore(self, handle: Handle) -> None:
        """Gives a replica that has taken the place of another what was published last, whatever the trained module has
        become since then, and waits. Does nothing where nothing was published yet.

        Raises:
            SyncError: what arrives is damaged, or the replica is in the source's own process.
            WorkerError: the source, or the replica, is gone.
        """
        if not self.plan:
            return
        if self._is_here(handle):
            raise SyncError(
                f"{self._source} -> {handle}: nothing is kept for replicas in the process of {self._source}. Sync "
                f"again."
            )
        self._carrier.restore(handle)

    def begin(self, version: int) -> list[Arrival]:
        """Submits a sync; :func:`synchronise` waits for what comes out."""
        if not self.plan:
            return []
        here = [handle for handle in self._destinations if self._is_here(handle)]
        elsewhere = [handle for handle in self._destinations if handle not in here]
        partial = self._has_synced
        arrivals = self._carrier.begin(version, elsewhere, partial=partial) if elsewhere else []
        if here:
            known = self._fixed if partial else frozenset[str]()
            transfers = [transfer for transfer in self.plan.transfers if transfer.name not in known]
            published = self._cluster.call(self._source, "apply", read_weights, transfers, version, self._merged)
            arrivals += [
                (handle, self._cluster.call(handle, "apply", write_weights, transfers, published)) for handle in here
            ]
        return arrivals

    def settle(self, version: int, arrivals: Sequence[Arrival]) -> None:
        """Waits for a sync that :meth:`begin` has submitted.

        Raises:
            SyncError, WorkerError: as for :meth:`sync`, once all others have ended.
        """
        problems: list[tuple[int, ChatLearnError]] = []
        for handle, arrival in arrivals:
            try:
                arrived = self._cluster.get(arrival)
            except ChatLearnError as error:  # the source's end is the cause of all others', and a loss the mildest
                rank = 0 if handle == self._source else 2 if isinstance(error, WorkerError) else 1
                problems.append((rank, error))
                continue
            if arrived != version:
                text = f"{handle} holds weights of version {arrived} after the sync of version {version}."
                problems.append((1, SyncError(text)))
        self._has_synced = True
        if problems:
            raise min(problems, key=lambda problem: problem[0])[1]

    def _is_here(self, handle: Handle) -> bool:
        return self._cluster.location(handle).process == self._cluster.location(self._source).process

    def _describe(self, handle: Handle, merged: bool = False) -> Described:
        return self._cluster.get(self._cluster.call(handle, "apply", describe_view, merged))

    def _check_sides(self, ours: Described, theirs: Described) -> None:
        """Both have weights or none has, and adapters that mean the same, or only the source has some, to be merged."""
        source, destination = self._source.module, self._destinations[0].module
        if bool(ours.held) != bool(theirs.held):
            empty, full = (source, destination) if not ours.held else (destination, source)
            raise SyncError(
                f"{source} -> {destination}: {empty} has no parameters in `self.model`, but {full} has "
                f"{len(ours.held or theirs.held)} tensors. Set "
                f"`self.model` to a torch.nn.Module in {empty}.setup(), or drop the set_parameter_sync of this pair."
            )
        self._merged = bool(theirs.held) and ours.scales is not None and theirs.scales is None
        if not self._merged:
            check_adapters(source, ours.scales, destination, theirs.scales)
            _check_whole(source, ours.whole, destination, theirs.whole)

    def _make_plan(self, ours: Described, theirs: Described) -> SyncPlan:
        source, destination = self._source.module, self._destinations[0].module
        plan = make_plan(source, {0: ours.held}, destination, {0: theirs.held})
        if ours.scales is None or not _same_dtypes(ours, theirs):
            return plan
        if ours.base != theirs.base:
            raise SyncError(
                f"{source} -> {destination}: the adapters of both stand on different base models. Give "
                f"models.{source}.args.model_path and models.{destination}.args.model_path the same folder."
            )
        return replace(plan, transfers=tuple(t for t in plan.transfers if t.name not in ours.fixed))


def synchronise(syncs: Sequence[ParameterSync], version: int) -> None:
    """Syncs several pairs at the same time, and waits.

    Args:
        syncs: of pairs that are due.
        version: that all of them get.

    Raises:
        SyncError, WorkerError: as for :meth:`ParameterSync.sync`, of the first pair that failed, once all have ended.
    """
    problem: ChatLearnError | None = None
    for sync, arrivals in [(sync, sync.begin(version)) for sync in syncs]:
        try:
            sync.settle(version, arrivals)
        except ChatLearnError as error:
            problem = problem or error
    if problem is not None:
        raise problem


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
