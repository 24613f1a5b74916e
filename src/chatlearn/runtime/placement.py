"""Which replica of which model sits on which device, and who shares with whom.

Pure: from a configuration and a list of nodes to a table; nothing here talks to a cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chatlearn.config.check import Problem, raise_problems
from chatlearn.config.schema import Config
from chatlearn.errors import ConfigError
from chatlearn.runtime.bundles import Bundle, bundles_of
from chatlearn.runtime.packing import Size, pack, packing_order, total
from chatlearn.runtime.placement_problems import shortages, too_large
from chatlearn.runtime.placement_table import render


@dataclass(frozen=True)
class Resources:
    """Cores and GPUs."""

    cpus: float = 0
    gpus: float = 0


NOTHING = Resources()


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        name: of the machine.
        cpus: cores; ``math.inf`` where they are not limited.
        gpus: GPUs, which are numbered from 0.
    """

    name: str
    cpus: float
    gpus: int = 0


@dataclass(frozen=True)
class Slot:
    """Where a replica sits.

    Attributes:
        node: index of the node.
        cpus: cores; a fraction where several share one.
        gpus: GPUs: the sum of the replica's shares, 1/k of each GPU that k replicas share.
        devices: numbers of the node's GPUs.
    """

    node: int
    cpus: float
    gpus: float = 0
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seat:
    """A bundle that has its place.

    Attributes:
        bundle: GPUs and cores, and the replicas that share them.
        node: index of the node.
        first: number of the node's GPU that is the first of the bundle.
    """

    bundle: Bundle
    node: int
    first: int


@dataclass(frozen=True)
class Placement:
    """Where everything sits.

    Attributes:
        nodes: the machines.
        seats: the bundles on them.
    """

    nodes: Sequence[Node]
    seats: Sequence[Seat]

    @cached_property
    def slots(self) -> Mapping[tuple[str, int], Slot]:
        """By name of the model and number of the replica."""
        return {
            (tenant.name, tenant.replica): Slot(
                seat.node,
                tenant.cpus,
                seat.bundle.share_of(tenant),
                tuple(seat.first + device for device in tenant.devices),
            )
            for seat in self.seats
            for tenant in seat.bundle.tenants
        }

    def table(self) -> str:
        """What sits where, and what is free, as text: one row for GPUs of a node with the same models on them."""
        return render(self.nodes, self.seats)


def needed(config: Config, names: Iterable[str]) -> Resources:
    """What these modules need in all; what several share counts once.

    Raises:
        ConfigError: a model can't be divided into replicas of one process each; all such models are listed.
    """
    bundles, _, problems = bundles_of(config, names)
    raise_problems(problems)
    size = total(bundles)
    return Resources(size.cpus, size.gpus)


def place(config: Config, names: Iterable[str], nodes: Sequence[Node]) -> Placement:
    """Places all replicas of these modules; the same arguments always give the same placement.

    Bundles with more GPUs come first, of equal ones those with more cores, then in the order of the names. Nodes are
    filled in order; modules without GPUs go by ``runtime.cpu_schedule_strategy``. Where that leaves a replica without
    a place, other ways are tried (see :func:`~chatlearn.runtime.packing.pack`).

    Args:
        config: sizes and groups; a module without a section takes the defaults.
        names: of the modules.
        nodes: what there is.

    Raises:
        ConfigError: lists every demand that can't be met, with the place of its key.
    """
    placement, problems = try_to_place(config, names, nodes)
    raise_problems(problems)
    return placement


def try_to_place(config: Config, names: Iterable[str], nodes: Sequence[Node]) -> tuple[Placement, list[Problem]]:
    """Like :func:`place`, but gives what has a place, and the problems."""
    bundles, demands, problems = bundles_of(config, names)
    sizes = [Size(node.gpus, node.cpus) for node in nodes]
    refused, large = too_large(config, demands, bundles, sizes)
    fitting = [bundle for index, bundle in enumerate(bundles) if index not in large]
    found = pack([_size(each) for each in fitting], sizes, config.runtime.cpu_schedule_strategy == "SPREAD")
    seats = _seats(fitting, found)
    homeless = [bundle for bundle, node in zip(fitting, found, strict=True) if node is None]
    short = shortages(config, [bundles[i] for i in sorted(large)], homeless, [seat.bundle for seat in seats], sizes)
    return Placement(tuple(nodes), seats), problems + refused + short


def parse_cluster(text: str) -> list[Node]:
    """The nodes that a text describes: ``2x8`` is 2 nodes with 8 GPUs each and any number of cores, ``2x0x16`` is 2
    nodes without GPUs and with 16 cores each.

    Raises:
        ConfigError: it is no such text, or there are no nodes or no cores.
    """
    numbers = [int(part) for part in text.split("x")] if re.fullmatch(r"[0-9]{1,4}(x[0-9]{1,4}){1,2}", text) else []
    if not numbers or not numbers[0] or numbers[2:] == [0]:
        raise ConfigError(
            f"expected NODESxGPUS or NODESxGPUSxCORES, such as 2x8 or 2x0x16, got {text!r}: GPUs and cores are those "
            f"of each node; there is at least one node, and at least one core"
        )
    num_nodes, gpus, cpus = (*numbers, math.inf)[:3]
    return [Node(f"node-{index}", cpus, int(gpus)) for index in range(int(num_nodes))]


def _seats(bundles: Sequence[Bundle], found: Sequence[int | None]) -> list[Seat]:
    """Numbers the GPUs of each node in the order in which bundles came there."""
    used: dict[int, int] = {}
    seats: dict[int, Seat] = {}
    for index in packing_order([_size(bundle) for bundle in bundles]):
        if (node := found[index]) is not None:
            seats[index] = Seat(bundles[index], node, used.get(node, 0))
            used[node] = used.get(node, 0) + bundles[index].gpus
    return [seats[index] for index in sorted(seats)]


def _size(bundle: Bundle) -> Size:
    return Size(bundle.gpus, bundle.cpus)
