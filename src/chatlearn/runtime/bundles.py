"""What the modules of a run ask of a cluster, as bundles: GPUs and cores that have to be on one node.

Models of one group in ``runtime.colocation`` share bundles; any other model has bundles of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chatlearn.config.check import Problem, source_of
from chatlearn.config.model import PARALLEL_SIZES, ModelConfig
from chatlearn.config.schema import Config

FINEST = 10_000
"""Clusters count resources in steps of 1 / FINEST, so shares are rounded down to that."""


@dataclass(frozen=True)
class Demand:
    """What one model asks for.

    Attributes:
        name: of the model.
        num_replica: how many replicas.
        gpus: of each replica.
        cpus: cores of each replica.
    """

    name: str
    num_replica: int
    gpus: int
    cpus: int


@dataclass(frozen=True)
class Tenant:
    """A replica in a bundle.

    Attributes:
        name: of its model.
        replica: its number.
        devices: which of the bundle's GPUs it uses; empty without a GPU.
        cpus: its share of the bundle's cores.
    """

    name: str
    replica: int
    devices: range
    cpus: float

    def __str__(self) -> str:
        return f"{self.name}[{self.replica}]"


@dataclass(frozen=True)
class Bundle:
    """GPUs and cores of one node, and the replicas that share them.

    Attributes:
        gpus: how many GPUs.
        cpus: how many cores.
        tenants: the replicas.
    """

    gpus: int
    cpus: int
    tenants: tuple[Tenant, ...]

    def num_sharing(self, device: int) -> int:
        """How many replicas use one of the bundle's GPUs."""
        return sum(device in tenant.devices for tenant in self.tenants)

    def share_of(self, tenant: Tenant) -> float:
        """GPUs of a replica: 1/k of each GPU that k replicas share."""
        return round(sum(share(1, self.num_sharing(device)) for device in tenant.devices), 4)


def share(whole: float, among: int) -> float:
    """An equal share, rounded down so that all together are never more than the whole."""
    return math.floor(whole * FINEST / among) / FINEST


def bundles_of(config: Config, names: Iterable[str]) -> tuple[list[Bundle], list[Demand], list[Problem]]:
    """The bundles of these modules, in the order of their names.

    Returns:
        The bundles, what each model asks for, and the problems: models that can't be divided into replicas of one
        process each. Those are left out of the bundles.
    """
    problems = {name: list(_size_problems(config, name)) for name in names}
    demands = {name: _demand(config, name) for name, found in problems.items() if not found}
    groups = _groups(config, list(demands))
    bundles = [bundle for group in groups for bundle in _divide([demands[name] for name in group])]
    return bundles, list(demands.values()), [problem for found in problems.values() for problem in found]


def section(config: Config, name: str) -> ModelConfig:
    """A model's section; the defaults where it has none."""
    return config.models.get(name) or ModelConfig()


def cores_key(config: Config, name: str) -> str:
    """The key that says how many cores a replica asks for."""
    return "num_cpu" if section(config, name).num_cpu else "cpu_per_process"


def _demand(config: Config, name: str) -> Demand:
    model = section(config, name)
    cpus: int = getattr(model, cores_key(config, name))
    return Demand(name, model.num_replica, model.num_gpu // model.num_replica, cpus)


def _groups(config: Config, names: Sequence[str]) -> list[list[str]]:
    """The names, those that share devices together."""
    leader = {name: group[0] for group in config.runtime.colocation for name in group}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(leader.get(name, name), []).append(name)
    return list(groups.values())


def _divide(members: Sequence[Demand]) -> Iterator[Bundle]:
    """Bundles of models that share their devices.

    The devices of the group are numbered; a model with n GPUs uses the first n, its replicas one after another. A
    bundle ends where no replica needs the next device too. Replica i of a model without GPUs joins bundle i.
    """
    total = max(member.num_replica * member.gpus for member in members)
    cuts = [at for at in range(total + 1) if all(_may_cut(member, at) for member in members)]
    spans = list(pairwise(cuts))
    extra = max((member.num_replica for member in members if not member.gpus), default=0) - len(spans)
    spans += [(total, total)] * extra
    for index, (begin, end) in enumerate(spans):
        inside = [(member, _replicas(member, index, begin, end)) for member in members]
        present = [(member, replicas) for member, replicas in inside if replicas]
        cpus = max(member.cpus * len(replicas) for member, replicas in present)
        tenants = [
            Tenant(
                member.name,
                replica,
                range(replica * member.gpus - begin, (replica + 1) * member.gpus - begin) if member.gpus else range(0),
                share(cpus, len(present) * len(replicas)),
            )
            for member, replicas in present
            for replica in replicas
        ]
        yield Bundle(end - begin, cpus, tuple(tenants))


def _may_cut(member: Demand, at: int) -> bool:
    """Whether no replica has devices on both sides."""
    return not member.gpus or at % member.gpus == 0 or at >= member.num_replica * member.gpus


def _replicas(member: Demand, index: int, begin: int, end: int) -> range:
    """The replicas of a model in bundle ``index``, which has the devices from ``begin`` to ``end``."""
    if not member.gpus:
        return range(index, min(index + 1, member.num_replica))
    return range(-(-begin // member.gpus), min(member.num_replica, -(-end // member.gpus)))


def _size_problems(config: Config, name: str) -> Iterator[Problem]:
    """Whatever keeps a model from being replicas of one process each."""
    model = section(config, name)
    if model.num_gpu and model.num_gpu != model.num_replica * model.gpu_per_process:
        place = source_of(config, ("models", name, "num_gpu"))
        yield Problem(place, f"models.{name}.num_gpu", *_uneven(name, model))
    for key in PARALLEL_SIZES:
        if (size := getattr(model, key)) > 1:
            message = f"is {size}, which divides a replica of {name} among processes; one process a replica runs today"
            yield Problem(source_of(config, ("models", name, key)), f"models.{name}.{key}", message, "set it to 1")


def _uneven(name: str, model: ModelConfig) -> tuple[str, str]:
    """Message and fix for GPUs that are not one process a replica."""
    gpus, replicas, each = model.num_gpu, model.num_replica, model.gpu_per_process
    has = f"{name} has {gpus} GPU{'s' * (gpus > 1)} for {replicas} replica{'s' * (replicas > 1)}"
    if gpus % (replicas * each) == 0:
        num = gpus // (replicas * each)
        what = "which" if replicas == 1 else "of which each"
        message = f"{has}, {what} would be {num} processes; one process a replica runs today"
    else:
        message = f"{has}, but {each} for each (gpu_per_process) make {replicas * each}"
    if gpus % each or model.trainable:
        return message, f"set num_gpu: {replicas * each}"
    return message, f"set num_replica: {gpus // each} (a trained module has one replica) or num_gpu: {replicas * each}"
