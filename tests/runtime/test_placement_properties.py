"""What holds for every placement, and that a placement is found if and only if there is one."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatlearn import ConfigError
from chatlearn.config import Config
from chatlearn.runtime.placement import Node, Placement, needed, place

NAMES = "abcd"


@st.composite
def models(draw: st.DrawFn, most_replicas: int = 5) -> dict[str, dict[str, Any]]:
    """One to four models of different sizes, with and without GPUs."""
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES[: draw(st.integers(1, 4))]:
        num, each = draw(st.integers(1, most_replicas)), draw(st.integers(0, 3))
        gpus = {"num_gpu": num * each, "gpu_per_process": each} if each else {}
        found[name] = {"num_replica": num, "num_cpu": draw(st.integers(0, 4)), **gpus}
    return found


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Models, some of them in groups."""
    given_models = draw(models())
    names = draw(st.permutations(list(given_models)))
    cuts = sorted(draw(st.sets(st.integers(1, 3))))
    groups = [names[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(names)]) if names[begin:end]]
    chosen = [group for group in groups if draw(st.booleans())]
    strategy = draw(st.sampled_from(["SPREAD", "PACK"]))
    return Config(models=given_models, runtime={"colocation": chosen, "cpu_schedule_strategy": strategy})


def nodes(most: int = 4, most_gpus: int = 8, most_cores: int = 20) -> st.SearchStrategy[list[Node]]:
    size = st.tuples(st.one_of(st.integers(1, most_cores), st.just(math.inf)), st.integers(0, most_gpus))
    return st.lists(size, min_size=1, max_size=most).map(
        lambda sizes: [Node(f"node-{index}", *size) for index, size in enumerate(sizes)]
    )


def placed(config: Config, there: list[Node]) -> Placement | None:
    try:
        return place(config, list(config.models), there)
    except ConfigError:
        return None


@st.composite
def placements(draw: st.DrawFn) -> tuple[Config, Placement]:
    """Models with their places, on nodes that may have been too few before one more was added."""
    config, there = draw(configs()), draw(nodes())
    if (placement := placed(config, there)) is None:
        need = needed(config, config.models)
        there.append(Node(f"node-{len(there)}", need.cpus, int(need.gpus)))
        placement = place(config, list(config.models), there)
    return config, placement


def tenants_by_device(placement: Placement) -> dict[tuple[int, int], list[tuple[str, int]]]:
    found: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for key, slot in placement.slots.items():
        for device in slot.devices:
            found.setdefault((slot.node, device), []).append(key)
    return found


@given(placements())
def test_every_replica_has_its_devices_on_one_node(case: tuple[Config, Placement]) -> None:
    config, placement = case
    asked = {(name, i) for name, model in config.models.items() for i in range(model.num_replica)}
    assert set(placement.slots) == asked
    for (name, _), slot in placement.slots.items():
        model = config.models[name]
        assert len(slot.devices) == (model.gpu_per_process if model.num_gpu else 0)
        assert set(slot.devices) <= set(range(placement.nodes[slot.node].gpus))


@given(placements())
def test_no_device_and_no_core_is_given_away_twice(case: tuple[Config, Placement]) -> None:
    _, placement = case
    devices = tenants_by_device(placement)
    for tenants in devices.values():
        assert len({name for name, _ in tenants}) == len(tenants)
    for key, slot in placement.slots.items():
        exact = sum(1 / len(devices[slot.node, device]) for device in slot.devices)
        assert exact - 0.001 < slot.gpus <= exact + 1e-9, key
    for index, node in enumerate(placement.nodes):
        on_node = [slot for slot in placement.slots.values() if slot.node == index]
        used = sum(1 for at, _ in devices if at == index)
        assert used - 0.01 < math.fsum(slot.gpus for slot in on_node) <= used + 1e-9
        assert math.fsum(slot.cpus for slot in on_node) <= node.cpus + 1e-9


@given(placements())
def test_devices_are_shared_within_a_group_only(case: tuple[Config, Placement]) -> None:
    config, placement = case
    group = {name: i for i, names in enumerate(config.runtime.colocation) for name in names}
    for tenants in tenants_by_device(placement).values():
        assert len({group.get(name, name) for name, _ in tenants}) == 1


@given(placements())
def test_replicas_of_one_number_and_size_are_together(case: tuple[Config, Placement]) -> None:
    config, placement = case
    for names in config.runtime.colocation:
        for one, other in itertools.combinations(names, 2):
            a, b = config.models[one], config.models[other]
            if bool(a.num_gpu) != bool(b.num_gpu) or (a.num_gpu and a.gpu_per_process != b.gpu_per_process):
                continue
            for replica in range(min(a.num_replica, b.num_replica)):
                first, second = placement.slots[one, replica], placement.slots[other, replica]
                assert (first.node, first.devices) == (second.node, second.devices)


@given(configs(), nodes())
def test_the_same_demand_gives_the_same_placement(config: Config, there: list[Node]) -> None:
    first, second = placed(config, there), placed(config, there)
    assert first == second
    if first is not None and second is not None:
        assert first.slots == second.slots
        assert first.table() == second.table()


@given(placements())
def test_what_is_needed_is_what_is_taken(case: tuple[Config, Placement]) -> None:
    config, placement = case
    need = needed(config, list(config.models))
    assert need.gpus == len(tenants_by_device(placement))
    taken = math.fsum(slot.cpus for slot in placement.slots.values())
    assert taken - 1e-9 <= need.cpus < taken + 0.01


@given(configs())
def test_one_node_with_all_that_is_needed_is_enough(config: Config) -> None:
    need = needed(config, list(config.models))
    assert placed(config, [Node("here", need.cpus, int(need.gpus))]) is not None
    assert placed(config, [Node("here", need.cpus - 1, int(need.gpus))]) is None
    if need.gpus:
        assert placed(config, [Node("here", need.cpus, int(need.gpus) - 1)]) is None


@given(placements())
def test_every_replica_and_every_device_stands_in_the_table(case: tuple[Config, Placement]) -> None:
    _, placement = case
    devices: list[tuple[str, int]] = []
    replicas: set[tuple[str, int]] = set()
    for row in placement.table().splitlines()[3:]:
        names, gpus, _, _, last = re.split(r"\s{2,}", row)
        first, _, final = names.replace("node-", "").partition(" to ")
        for index in range(int(first), int(final or first) + 1):
            devices += [(f"node-{index}", device) for device in _numbers(gpus)]
        replicas |= {(name, i) for name, numbers in re.findall(r"(\w)\[(.*?)\]", last) for i in _numbers(numbers)}
    assert replicas == set(placement.slots)
    assert sorted(devices) == [(node.name, device) for node in placement.nodes for device in range(node.gpus)]


def _numbers(ranges: str) -> list[int]:
    """``0-2,5`` as numbers."""
    ends = [each.split("-") for each in ranges.split(",")] if ranges != "-" else []
    return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]


def _exists(config: Config, there: list[Node]) -> bool:
    """Whether any way to choose nodes for the replicas works; all are tried. For models without groups."""
    sizes = [
        (model.num_gpu // model.num_replica, model.num_cpu or model.cpu_per_process)
        for model in config.models.values()
        for _ in range(model.num_replica)
    ]
    for choice in itertools.product(range(len(there)), repeat=len(sizes)):
        gpus, cpus = [node.gpus for node in there], [node.cpus for node in there]
        for node, (num_gpus, num_cpus) in zip(choice, sizes, strict=True):
            gpus[node] -= num_gpus
            cpus[node] -= num_cpus
        if min(*gpus, *cpus) >= 0:
            return True
    return False


@given(models(most_replicas=2), nodes(most=2, most_gpus=7, most_cores=12), st.sampled_from(["SPREAD", "PACK"]))
def test_a_placement_is_found_exactly_if_there_is_one(
    sizes: dict[str, dict[str, Any]], there: list[Node], strategy: str
) -> None:
    config = Config(models=sizes, runtime={"cpu_schedule_strategy": strategy})
    assert (placed(config, there) is not None) == _exists(config, there)


@given(models(most_replicas=2), nodes(most=2, most_gpus=7, most_cores=12))
def test_models_of_equal_size_in_one_group_need_no_more_than_one_of_them(
    sizes: dict[str, dict[str, Any]], there: list[Node]
) -> None:
    alone = Config(models=sizes)
    doubled = Config(
        models={**sizes, **{f"{name}2": model for name, model in sizes.items()}},
        runtime={"colocation": [[name, f"{name}2"] for name in sizes]},
    )
    one, both = placed(alone, there), placed(doubled, there)
    assert needed(alone, alone.models) == needed(doubled, doubled.models)
    assert (one is None) == (both is None)
    if one is not None and both is not None:
        for key, slot in one.slots.items():
            assert both.slots[key].node == slot.node
            assert both.slots[key].devices == slot.devices
