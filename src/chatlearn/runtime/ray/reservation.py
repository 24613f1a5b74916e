"""Placement groups: the devices that the replicas of a run sit on, reserved before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from chatlearn.errors import WorkerError
from chatlearn.runtime.base import Handle
from chatlearn.runtime.placement import Placement, Seat
from chatlearn.runtime.ray import api
from chatlearn.runtime.ray.session import Machine

_RESERVE_SECONDS = 20.0


@dataclass(frozen=True)
class Bundle:
    """A replica's part of a reservation.

    Attributes:
        group: the placement group of its node.
        index: of the bundle in it.
        cpus: cores of the replica.
        gpus: its GPUs; a fraction where it shares one.
        node: Ray's id of the node.
    """

    group: Any
    index: int
    cpus: float
    gpus: float
    node: str

    def options(self) -> dict[str, Any]:
        """Of an actor that sits there."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.index)
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": strategy}


def reserved(placement: Placement, machines: Sequence[Machine]) -> dict[Handle, Bundle]:
    """One group for each node; replicas that share devices share a bundle.

    Raises:
        WorkerError: the devices are not free, or several GPUs would be shared; nothing stays reserved.
    """
    if apart := [seat for seat in placement.seats if seat.bundle.gpus > 1 and len(seat.bundle.tenants) > 1]:
        sharing = ", ".join(map(str, apart[0].bundle.tenants))
        raise WorkerError(
            f"{sharing} share {apart[0].bundle.gpus} GPUs, but Ray divides single GPUs only. Give the models of a "
            f"group in runtime.colocation one GPU a replica (gpu_per_process: 1), or take one of them out of the group."
        )
    bundles: dict[Handle, Bundle] = {}
    for number, machine in enumerate(machines):
        sized = [(seat, _size(seat, machine)) for seat in placement.seats if seat.node == number]
        seats, sizes = [seat for seat, size in sized if size], [size for _, size in sized if size]
        if not seats:
            continue
        pin: dict[str, Any] = {"bundle_label_selector": [{"ray.io/node-id": machine.id}] * len(sizes)}
        group = placement_group(sizes, strategy="STRICT_PACK", **pin)
        for index, seat in enumerate(seats):
            for tenant in seat.bundle.tenants:
                handle = Handle(tenant.name, tenant.replica)
                cpus = tenant.cpus if "CPU" in sizes[index] else 0
                bundles[handle] = Bundle(group, index, cpus, seat.bundle.share_of(tenant), machine.id)
        if not group.wait(_RESERVE_SECONDS):
            here = ", ".join(str(tenant) for seat in seats for tenant in seat.bundle.tenants)
            release(bundles.values())
            raise WorkerError(
                f"{machine.name} ({machine.host}) has no room for {here}: they need {_words(_total(sizes))} there, and "
                f"others hold a part of its {_words({'CPU': machine.cpus, 'GPU': machine.gpus})}: other programs, or "
                f"an engine of this one that nobody has stopped. Free in the whole cluster: "
                f"{_words(api.free())}. Wait for them, call engine.stop(), or ask for less."
            )
    return bundles


def release(bundles: Iterable[Bundle]) -> None:
    """Gives the devices back."""
    for group in {bundle.group.id: bundle.group for bundle in bundles}.values():
        remove_placement_group(group)


def _size(seat: Seat, machine: Machine) -> dict[str, float]:
    """What is reserved for a seat, where that is limited."""
    size = {"CPU": 0.0 if machine.cpus == math.inf else float(seat.bundle.cpus), "GPU": float(seat.bundle.gpus)}
    return {kind: amount for kind, amount in size.items() if amount}


def _total(sizes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {kind: sum(size.get(kind, 0) for size in sizes) for kind in ("CPU", "GPU")}


def _words(size: Mapping[str, float]) -> str:
    cores = size.get("CPU", 0)
    return f"{'any number of' if cores == math.inf else f'{cores:g}'} cores and {size.get('GPU', 0):g} GPUs"
