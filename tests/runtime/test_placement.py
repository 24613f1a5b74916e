"""Placements that were worked out by hand, and their tables."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from chatlearn import ConfigError
from chatlearn.config import Config
from chatlearn.runtime.placement import Node, Resources, Slot, needed, parse_cluster, place


def config_of(*groups: str, strategy: str = "SPREAD", **models: dict[str, object]) -> Config:
    return Config(models=models, runtime={"colocation": list(groups), "cpu_schedule_strategy": strategy})


def gpus(num: int, each: int = 1, **more: object) -> dict[str, object]:
    """A model of so many replicas with so many GPUs each."""
    return {"num_gpu": num * each, "num_replica": num, "gpu_per_process": each, **more}


def slots_of(config: Config, cluster: str) -> dict[str, Slot]:
    placement = place(config, list(config.models), parse_cluster(cluster))
    return {f"{name}[{replica}]": slot for (name, replica), slot in placement.slots.items()}


def test_nodes_are_filled_in_order() -> None:
    assert slots_of(config_of(policy=gpus(3), value=gpus(2)), "2x4") == {
        "policy[0]": Slot(0, 1, 1, (0,)),
        "policy[1]": Slot(0, 1, 1, (1,)),
        "policy[2]": Slot(0, 1, 1, (2,)),
        "value[0]": Slot(0, 1, 1, (3,)),
        "value[1]": Slot(1, 1, 1, (0,)),
    }


def test_a_replica_with_several_gpus_stays_on_one_node_and_larger_ones_come_first() -> None:
    assert slots_of(config_of(reward=gpus(2), policy=gpus(2, 3), value=gpus(1, 2)), "2x5") == {
        "policy[0]": Slot(0, 1, 3, (0, 1, 2)),
        "policy[1]": Slot(1, 1, 3, (0, 1, 2)),
        "value[0]": Slot(0, 1, 2, (3, 4)),
        "reward[0]": Slot(1, 1, 1, (3,)),
        "reward[1]": Slot(1, 1, 1, (4,)),
    }


def test_models_of_a_group_share_devices_and_cores_equally() -> None:
    config = config_of("policy,reference", policy=gpus(2, num_cpu=4), reference=gpus(2, num_cpu=2), value=gpus(1))
    assert slots_of(config, "1x3x10") == {
        "policy[0]": Slot(0, 2, 0.5, (0,)),
        "policy[1]": Slot(0, 2, 0.5, (1,)),
        "reference[0]": Slot(0, 2, 0.5, (0,)),
        "reference[1]": Slot(0, 2, 0.5, (1,)),
        "value[0]": Slot(0, 1, 1, (2,)),
    }
    assert needed(config, list(config.models)) == Resources(cpus=4 + 4 + 1, gpus=3)


def test_a_third_of_a_device_is_rounded_down_so_that_three_fit() -> None:
    slots = slots_of(config_of("a,b,c", a=gpus(1), b=gpus(1), c=gpus(1)), "1x1")
    assert {slot.gpus for slot in slots.values()} == {0.3333}
    assert {slot.cpus for slot in slots.values()} == {0.3333}


def test_a_smaller_model_of_a_group_uses_its_first_devices() -> None:
    assert slots_of(config_of("policy,reward", policy=gpus(4), reward=gpus(2)), "2x2") == {
        "policy[0]": Slot(0, 0.5, 0.5, (0,)),
        "policy[1]": Slot(0, 0.5, 0.5, (1,)),
        "policy[2]": Slot(1, 1, 1, (0,)),
        "policy[3]": Slot(1, 1, 1, (1,)),
        "reward[0]": Slot(0, 0.5, 0.5, (0,)),
        "reward[1]": Slot(0, 0.5, 0.5, (1,)),
    }


def test_several_small_replicas_of_a_group_lie_beside_a_large_one() -> None:
    config = config_of("policy,reward", policy=gpus(2, 2), reward=gpus(4))
    assert slots_of(config, "2x2") == {
        "policy[0]": Slot(0, 1, 1, (0, 1)),
        "policy[1]": Slot(1, 1, 1, (0, 1)),
        "reward[0]": Slot(0, 0.5, 0.5, (0,)),
        "reward[1]": Slot(0, 0.5, 0.5, (1,)),
        "reward[2]": Slot(1, 0.5, 0.5, (0,)),
        "reward[3]": Slot(1, 0.5, 0.5, (1,)),
    }
    assert needed(config, ["policy", "reward"]) == Resources(cpus=4, gpus=4)


def test_sizes_that_do_not_divide_each_other_are_kept_on_one_node() -> None:
    slots = slots_of(config_of("a,b", a=gpus(3, 2), b=gpus(2, 3), c=gpus(1)), "2x6")
    assert [slots[f"a[{i}]"].devices for i in range(3)] == [(0, 1), (2, 3), (4, 5)]
    assert [slots[f"b[{i}]"].devices for i in range(2)] == [(0, 1, 2), (3, 4, 5)]
    assert slots["a[0]"].gpus == 1
    assert slots["b[0]"].gpus == 1.5
    assert slots["c[0]"] == Slot(1, 1, 1, (0,))


def test_a_model_without_a_gpu_sits_beside_replica_by_replica_of_its_group() -> None:
    config = config_of("policy,reward", policy=gpus(2), reward={"num_replica": 3, "num_cpu": 4})
    assert slots_of(config, "2x1") == {
        "policy[0]": Slot(0, 2, 1, (0,)),
        "policy[1]": Slot(1, 2, 1, (0,)),
        "reward[0]": Slot(0, 2),
        "reward[1]": Slot(1, 2),
        "reward[2]": Slot(0, 4),
    }


@pytest.mark.parametrize(("strategy", "nodes"), [("SPREAD", [0, 1, 2, 0]), ("PACK", [0, 0, 0, 1])])
def test_modules_without_a_gpu_are_spread_or_packed(strategy: str, nodes: list[int]) -> None:
    config = config_of(strategy=strategy, reward={"num_replica": 4, "num_cpu": 2})
    for cluster in ("3x0x6", "3x1x7"):
        assert [slot.node for slot in slots_of(config, cluster).values()] == nodes


def test_spreading_goes_round_the_nodes_and_begins_where_most_cores_are_free() -> None:
    config = config_of(policy=gpus(1, num_cpu=3), reward={"num_replica": 4})
    for cluster in ("2x1x8", "2x1"):
        assert [slots_of(config, cluster)[f"reward[{i}]"].node for i in range(4)] == [1, 0, 1, 0]


def test_threads_of_a_process_count_as_cores_where_no_cores_are_asked_for() -> None:
    config = config_of(a={"cpu_per_process": 4}, b={"cpu_per_process": 4, "num_cpu": 1}, c={})
    assert {name: slot.cpus for name, slot in slots_of(config, "1x0").items()} == {"a[0]": 4, "b[0]": 1, "c[0]": 1}
    assert needed(config, ["a", "b", "c"]) == Resources(cpus=6, gpus=0)


def test_only_the_named_modules_are_placed_and_modules_without_an_entry_take_the_defaults() -> None:
    config = config_of("policy,reference", policy=gpus(1), reference=gpus(1))
    assert place(config, ["policy"], parse_cluster("1x1")).slots == {("policy", 0): Slot(0, 1, 1, (0,))}
    assert place(config, ["advantages"], parse_cluster("1x1")).slots == {("advantages", 0): Slot(0, 1)}
    assert place(Config(), ["a", "b"], [Node("here", 2)]).slots == {("a", 0): Slot(0, 1), ("b", 0): Slot(0, 1)}


def test_other_ways_are_tried_where_filling_in_order_leaves_a_replica_over() -> None:
    """In order: 4 and 3 GPUs are taken of the first node, 3, 2 and 2 of the second, and the last 2 find one and one.
    But 4 + 2 + 2 and 3 + 3 + 2 fit.
    """
    models = {"a": gpus(1, 4), "b": gpus(2, 3), "c": gpus(3, 2)}
    slots = slots_of(config_of(**models), "2x8")
    used = [(slot.node, device) for slot in slots.values() for device in slot.devices]
    assert sorted(used) == [(node, device) for node in range(2) for device in range(8)]
    assert slots["a[0]"].node != slots["b[0]"].node == slots["b[1]"].node


def test_the_table_shows_what_sits_where_and_what_is_free() -> None:
    config = config_of(
        "policy,reference",
        policy=gpus(4),
        reference=gpus(4),
        value=gpus(1, 2),
        ppo_policy=gpus(1, trainable=True),
        reward={"num_replica": 6, "num_cpu": 2},
    )
    table = place(config, list(config.models), parse_cluster("2x8x16")).table()
    assert table.splitlines() == [
        "2 nodes: 7 of 16 GPUs and 18 of 32 cores taken",
        "",
        "node    GPUs  share  cores  replicas",
        "node-0  0-1   1          1  value[0]",
        "node-0  2-5   1/2        4  policy[0-3], reference[0-3]",
        "node-0  6     1          1  ppo_policy[0]",
        "node-0  -     -          6  reward[1,3,5]",
        "node-0  7     -          4  free",
        "node-1  -     -          6  reward[0,2,4]",
        "node-1  0-7   -         10  free",
    ]


def test_the_table_of_many_nodes_has_one_row_for_those_that_are_empty() -> None:
    config = config_of(policy=gpus(16))
    lines = place(config, ["policy"], parse_cluster("32x8")).table().splitlines()
    assert lines == [
        "32 nodes: 16 of 256 GPUs and 16 cores taken",
        "",
        "node               GPUs  share  cores  replicas",
        "node-0             0-7   1          8  policy[0-7]",
        "node-1             0-7   1          8  policy[8-15]",
        "node-2 to node-31  0-7   -          -  free on each",
    ]


def test_the_table_of_a_mixed_group() -> None:
    config = config_of("a,b,c", a=gpus(1, 2), b=gpus(1), c={"num_replica": 2, "num_cpu": 3})
    lines = place(config, ["a", "b", "c"], [Node("big", 4, 2), Node("small", 3.5)]).table().splitlines()
    assert lines == [
        "2 nodes: 2 of 2 GPUs and 6 of 7.5 cores taken",
        "",
        "node   GPUs  share  cores  replicas",
        "big    0     1/2        3  a[0], b[0], c[0] (no GPU)",
        "big    1     1          0  a[0], c[0] (no GPU)",
        "big    -     -          1  free",
        "small  -     -          3  c[1]",
        "small  -     -        0.5  free",
    ]


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("2x8", [Node("node-0", math.inf, 8), Node("node-1", math.inf, 8)]),
        ("1x0", [Node("node-0", math.inf, 0)]),
        ("2x0x16", [Node("node-0", 16, 0), Node("node-1", 16, 0)]),
        ("1x4x1", [Node("node-0", 1, 4)]),
    ],
)
def test_a_cluster_is_described_by_numbers_with_x_between(text: str, nodes: list[Node]) -> None:
    assert parse_cluster(text) == nodes


@pytest.mark.parametrize(
    "text", ["2y8", "0x1", "2", "x8", "2x", "2x8x0", "2x8x1x1", "-1x8", "2x-8", "1.5x8", " 2x8", "²x8", "99999x8", ""]
)
def test_another_description_of_a_cluster_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cluster(text)
    for words in ("expected NODESxGPUS or NODESxGPUSxCORES, such as 2x8", f"got {text!r}", "at least one node"):
        assert words in str(caught.value)


def test_placing_needs_neither_ray_nor_torch() -> None:
    code = "import sys, chatlearn.runtime.placement\nprint(sorted({'ray', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"
