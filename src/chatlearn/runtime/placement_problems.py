"""Why a demand can't be met by the nodes that there are, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from chatlearn.config.check import Problem, source_of
from chatlearn.config.schema import Config
from chatlearn.runtime.bundles import Bundle, Demand, cores_key
from chatlearn.runtime.packing import Size, total
from chatlearn.runtime.placement_table import count, number

_MOST_LABELS = 8
"""Replicas that a message names; it counts the others."""


def too_large(
    config: Config, demands: Iterable[Demand], bundles: Sequence[Bundle], nodes: Sequence[Size]
) -> tuple[list[Problem], set[int]]:
    """What no node could hold, even if it were empty.

    Returns:
        The problems, and the indices of the bundles.
    """
    problems = {demand.name: list(_replica_too_large(config, demand, nodes)) for demand in demands}
    large: set[int] = set()
    told: set[frozenset[str]] = set()
    of_groups: list[Problem] = []
    for index, bundle in enumerate(bundles):
        if _fits(bundle.gpus, bundle.cpus, nodes):
            continue
        large.add(index)
        names = frozenset(tenant.name for tenant in bundle.tenants)
        if names not in told and not any(problems[name] for name in names):
            told.add(names)
            of_groups.append(_bundle_too_large(config, bundle, nodes))
    return [problem for found in problems.values() for problem in found] + of_groups, large


def shortages(
    config: Config, large: Sequence[Bundle], homeless: Sequence[Bundle], others: Sequence[Bundle], nodes: Sequence[Size]
) -> list[Problem]:
    """What would fit on a node, but finds no place beside the others.

    Args:
        config: of the run.
        large: bundles that no node could hold.
        homeless: others without a place.
        others: those that have one.
        nodes: what the nodes have.
    """
    problems: list[Problem] = []
    without, there = [*homeless, *large], total(nodes)
    asked, possible = total([*without, *others]), total([*homeless, *others])
    if possible.gpus > there.gpus:
        with_gpus = [bundle for bundle in without if bundle.gpus]
        fix = f"take {count(asked.gpus - there.gpus, 'GPU')} more, lower num_gpu, or let models share GPUs"
        problems.append(_short(config, with_gpus, "num_gpu", "GPU", asked.gpus, there.gpus, f"{fix} (colocation)"))
        homeless = [bundle for bundle in homeless if not bundle.gpus]
    if possible.cpus > there.cpus:
        fix = f"take {count(asked.cpus - there.cpus, 'core')} more, or lower num_cpu or num_replica"
        problems.append(_short(config, without, "", "core", asked.cpus, there.cpus, fix))
        homeless = []
    return problems + [_no_gap(config, each) for each in _alike(homeless)]


def _short(
    config: Config, bundles: Sequence[Bundle], key: str, what: str, asked: float, there: float, fix: str
) -> Problem:
    verb = "finds" if sum(len(bundle.tenants) for bundle in bundles) == 1 else "find"
    message = (
        f"in all {count(asked, what)} are asked for, the cluster has {number(there)}: {number(asked - there)} short: "
        f"{_labels(bundles)} {verb} no place"
    )
    tenants = [tenant for bundle in bundles for tenant in bundle.tenants if tenant.devices or not key]
    return _problem(config, tenants[0].name, key or cores_key(config, tenants[0].name), message, fix)


def _no_gap(config: Config, bundles: Sequence[Bundle]) -> Problem:
    one, first = bundles[0], bundles[0].tenants[0].name
    verb = "finds" if sum(len(bundle.tenants) for bundle in bundles) == 1 else "find"
    message = (
        f"{_labels(bundles)} {verb} no place: {_amount(one.gpus, one.cpus)} of one node are asked for, and no node has "
        f"so much left beside the others"
    )
    fix = "ask for sizes that divide what a node has, let models share (colocation), or take another node"
    return _problem(config, first, "num_gpu" if one.gpus else cores_key(config, first), message, fix)


def _alike(bundles: Iterable[Bundle]) -> list[list[Bundle]]:
    """Bundles of equal size and equal models together."""
    kinds: dict[tuple[object, ...], list[Bundle]] = {}
    for bundle in bundles:
        names = tuple(dict.fromkeys(tenant.name for tenant in bundle.tenants))
        kinds.setdefault((bundle.gpus, bundle.cpus, names), []).append(bundle)
    return list(kinds.values())


def _replica_too_large(config: Config, demand: Demand, nodes: Sequence[Size]) -> Iterator[Problem]:
    gpus, cpus = max((node.gpus for node in nodes), default=0), max((node.cpus for node in nodes), default=0)
    name, key = demand.name, cores_key(config, demand.name)
    have = "nodes have" if len(set(nodes)) == 1 else "the largest node has"
    if demand.gpus > gpus:
        less = f"set gpu_per_process: {gpus} and num_gpu: {gpus * demand.num_replica}" if gpus else "set num_gpu: 0"
        message = f"{name} asks {count(demand.gpus, 'GPU')} a replica, {have} {gpus}"
        yield _problem(config, name, "gpu_per_process" if demand.gpus > 1 else "num_gpu", message, _or_take(less))
    if demand.cpus > cpus:
        message = f"{name} asks {count(demand.cpus, 'core')} a replica, {have} {number(cpus)}"
        yield _problem(config, name, key, message, _or_take(f"set {key}: {int(cpus)} or less" if cpus >= 1 else ""))
    if demand.gpus <= gpus and demand.cpus <= cpus and not _fits(demand.gpus, demand.cpus, nodes):
        most = max(node.cpus for node in nodes if node.gpus >= demand.gpus)
        message = (
            f"{name} asks {_amount(demand.gpus, demand.cpus)} a replica, and no node has both: "
            f"those with so many GPUs have at most {count(most, 'core')}"
        )
        yield _problem(config, name, key, message, _or_take(f"set {key}: {int(most)} or less" if most >= 1 else ""))


def _bundle_too_large(config: Config, bundle: Bundle, nodes: Sequence[Size]) -> Problem:
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
    have = "nodes have" if len(set(nodes)) == 1 else "the largest node has"
    message = (
        f"{_labels([bundle])} share {_amount(bundle.gpus, bundle.cpus)}, which have to be on one node; "
        f"{have} {_amount(largest.gpus, largest.cpus)}"
    )
    fix = "give the models of the group sizes that divide each other (gpu_per_process, num_cpu), or part the group"
    return Problem(source_of(config, ("runtime", "colocation")), "runtime.colocation", message, fix)


def _fits(gpus: int, cpus: float, nodes: Iterable[Size]) -> bool:
    return any(Size(gpus, cpus).fits(node) for node in nodes)


def _problem(config: Config, name: str, key: str, message: str, fix: str) -> Problem:
    return Problem(source_of(config, ("models", name, key)), f"models.{name}.{key}", message, fix)


def _or_take(fix: str) -> str:
    return f"{fix}, or take larger nodes" if fix else "take larger nodes"


def _labels(bundles: Iterable[Bundle]) -> str:
    labels = [str(tenant) for bundle in bundles for tenant in bundle.tenants]
    rest = len(labels) - _MOST_LABELS
    return ", ".join(labels) if rest <= 0 else f"{', '.join(labels[:_MOST_LABELS])} and {rest} more"


def _amount(gpus: int, cpus: float) -> str:
    cores = "any number of cores" if cpus == math.inf else count(cpus, "core")
    return f"{count(gpus, 'GPU')} and {cores}" if gpus else cores
