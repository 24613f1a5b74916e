"""Demands that can't be met: what the error says, and that it says all at once."""

from __future__ import annotations

import pytest

from chatlearn import ConfigError
from chatlearn.config import Config, load_config_text
from chatlearn.runtime.placement import Node, needed, parse_cluster, place


def refusal(text: str, cluster: str | list[Node]) -> str:
    """The error of a configuration ``my.yaml``."""
    config = load_config_text(text, "my.yaml")
    with pytest.raises(ConfigError) as caught:
        place(config, list(config.models), parse_cluster(cluster) if isinstance(cluster, str) else cluster)
    return str(caught.value)


def problems(text: str, cluster: str | list[Node]) -> list[str]:
    """Its problems, one line each with the fix."""
    return [each.strip()[3:] for each in refusal(text, cluster).replace("\n     Fix", " Fix").splitlines()[1:]]


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (
            "num_gpu: 8",
            "policy has 8 GPUs for 1 replica, which would be 8 processes; one process a replica runs today "
            "Fix: set num_replica: 8 (a trained module has one replica) or num_gpu: 1.",
        ),
        (
            "num_gpu: 8, trainable: true",
            "policy has 8 GPUs for 1 replica, which would be 8 processes; one process a replica runs today "
            "Fix: set num_gpu: 1.",
        ),
        (
            "num_gpu: 8, num_replica: 2, gpu_per_process: 2",
            "policy has 8 GPUs for 2 replicas, of which each would be 2 processes; one process a replica runs today "
            "Fix: set num_replica: 4 (a trained module has one replica) or num_gpu: 4.",
        ),
        (
            "num_gpu: 5, num_replica: 2",
            "policy has 5 GPUs for 2 replicas, but 1 for each (gpu_per_process) make 2 "
            "Fix: set num_replica: 5 (a trained module has one replica) or num_gpu: 2.",
        ),
        (
            "num_gpu: 3, gpu_per_process: 2",
            "policy has 3 GPUs for 1 replica, but 2 for each (gpu_per_process) make 2 Fix: set num_gpu: 2.",
        ),
        (
            "num_gpu: 1, num_replica: 3",
            "policy has 1 GPU for 3 replicas, but 1 for each (gpu_per_process) make 3 "
            "Fix: set num_replica: 1 (a trained module has one replica) or num_gpu: 3.",
        ),
    ],
)
def test_a_replica_is_one_process(model: str, wanted: str) -> None:
    text = f"models:\n  policy: {{{model}}}\n"
    assert problems(text, "2x8") == [f"my.yaml:2  models.policy.num_gpu: {wanted}"]
    config = load_config_text(text, "my.yaml")
    with pytest.raises(ConfigError) as caught:
        needed(config, ["policy"])
    assert str(caught.value) == refusal(text, "2x8")


@pytest.mark.parametrize(
    "key",
    [
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
        *("fsdp_size", "sp_size", "zero_size"),
    ],
)
def test_a_model_is_not_divided_among_processes(key: str) -> None:
    assert problems(f"models:\n  policy:\n    num_gpu: 2\n    num_replica: 2\n    {key}: 2\n", "2x8") == [
        f"my.yaml:5  models.policy.{key}: is 2, which divides a replica of policy among processes; one process a "
        f"replica runs today Fix: set it to 1."
    ]


def test_all_ranks_of_one_process_are_that_process() -> None:
    config = load_config_text("models: {policy: {num_gpu: 1, fsdp_size: -1}}")
    assert needed(config, ["policy"]).gpus == 1


def test_a_replica_is_larger_than_any_node() -> None:
    text = "models:\n  policy:\n    num_gpu: 6\n    num_replica: 2\n    gpu_per_process: 3\n"
    assert problems(text, "4x2") == [
        "my.yaml:5  models.policy.gpu_per_process: policy asks 3 GPUs a replica, nodes have 2 "
        "Fix: set gpu_per_process: 2 and num_gpu: 4, or take larger nodes."
    ]
    assert "the largest node has 2\n" in refusal(text, [Node("a", 8, 2), Node("b", 8, 2), Node("c", 8, 1)])


def test_there_is_no_gpu_at_all() -> None:
    text = "models:\n  policy: {num_gpu: 1}\n  reward: {}\n"
    assert problems(text, "2x0") == [
        "my.yaml:2  models.policy.num_gpu: policy asks 1 GPU a replica, nodes have 0 "
        "Fix: set num_gpu: 0, or take larger nodes."
    ]


@pytest.mark.parametrize("key", ["num_cpu", "cpu_per_process"])
def test_a_replica_has_more_cores_than_any_node(key: str) -> None:
    assert problems(f"models:\n  policy:\n    {key}: 64\n", "2x8x16") == [
        f"my.yaml:3  models.policy.{key}: policy asks 64 cores a replica, nodes have 16 "
        f"Fix: set {key}: 16 or less, or take larger nodes."
    ]


def test_no_node_has_both_the_gpus_and_the_cores() -> None:
    text = "models:\n  policy: {num_gpu: 2, gpu_per_process: 2, num_cpu: 32}\n"
    assert problems(text, [Node("gpus", 8, 4), Node("cores", 64, 1)]) == [
        "my.yaml:2  models.policy.num_cpu: policy asks 2 GPUs and 32 cores a replica, and no node has both: those with "
        "so many GPUs have at most 8 cores Fix: set num_cpu: 8 or less, or take larger nodes."
    ]


def test_there_are_too_few_gpus_in_all() -> None:
    text = "models:\n  policy: {num_gpu: 6, num_replica: 6}\n  reward: {num_device: 6, num_replica: 6}\n"
    assert problems(text, "1x8") == [
        "my.yaml:3  models.reward.num_gpu: in all 12 GPUs are asked for, the cluster has 8: 4 short: reward[2], "
        "reward[3], reward[4], reward[5] find no place "
        "Fix: take 4 GPUs more, lower num_gpu, or let models share GPUs (colocation)."
    ]


def test_one_gpu_short_and_many_gpus_short() -> None:
    text = "models:\n  policy: {num_gpu: 3, num_replica: 3}\n"
    assert "cluster has 2: 1 short: policy[2] finds no place Fix: take 1 GPU more" in problems(text, "2x1")[0]
    text = "models:\n  policy: {num_gpu: 30, num_replica: 30}\n"
    assert ": 28 short: policy[2], policy[3]," in problems(text, "2x1")[0]
    assert "policy[9] and 20 more find no place" in problems(text, "2x1")[0]


def test_there_are_too_few_cores_in_all() -> None:
    text = "models:\n  policy: {num_gpu: 1}\n  reward:\n    num_replica: 3\n    num_cpu: 4\n"
    assert problems(text, "1x1x9") == [
        "my.yaml:5  models.reward.num_cpu: in all 13 cores are asked for, the cluster has 9: 4 short: reward[2] finds "
        "no place Fix: take 4 cores more, or lower num_cpu or num_replica."
    ]


def test_there_is_enough_in_all_but_not_on_one_node() -> None:
    text = "models:\n  policy: {num_gpu: 9, num_replica: 3, gpu_per_process: 3}\n"
    assert problems(text, "2x5") == [
        "my.yaml:2  models.policy.num_gpu: policy[2] finds no place: 3 GPUs and 1 core of one node are asked for, and "
        "no node has so much left beside the others Fix: ask for sizes that divide what a node has, let models share "
        "(colocation), or take another node."
    ]


def test_too_few_gpus_do_not_hide_a_module_without_a_gpu_that_finds_no_place() -> None:
    text = "models:\n  policy: {num_gpu: 3, num_replica: 3, num_cpu: 3}\n  reward: {num_replica: 2, num_cpu: 3}\n"
    nodes = [Node("gpus", 8, 2), Node("one", 2), Node("another", 9)]
    assert [each.split(" Fix")[0] for each in problems(text, nodes)] == [
        "my.yaml:2  models.policy.num_gpu: in all 3 GPUs are asked for, the cluster has 2: 1 short: policy[2] finds no "
        "place",
    ]
    nodes = [Node("gpus", 8, 2), Node("one", 5), Node("another", 2), Node("last", 2)]
    assert [each.split(" Fix")[0] for each in problems(text, nodes)] == [
        "my.yaml:2  models.policy.num_gpu: in all 3 GPUs are asked for, the cluster has 2: 1 short: policy[2] finds no "
        "place",
        "my.yaml:3  models.reward.num_cpu: reward[1] finds no place: 3 cores of one node are asked for, and no node "
        "has so much left beside the others",
    ]


def test_a_group_is_larger_than_any_node_though_none_of_its_replicas_is() -> None:
    text = (
        "models:\n  a: {num_gpu: 6, num_replica: 3, gpu_per_process: 2}\n"
        "  b: {num_gpu: 6, num_replica: 2, gpu_per_process: 3}\nruntime:\n  colocation: [[a, b]]\n"
    )
    assert problems(text, "2x4") == [
        "my.yaml:5  runtime.colocation: a[0], a[1], a[2], b[0], b[1] share 6 GPUs and 3 cores, which have to be on one "
        "node; nodes have 4 GPUs and any number of cores Fix: give the models of the group sizes that divide each "
        "other (gpu_per_process, num_cpu), or part the group."
    ]


def test_everything_impossible_is_listed_at_once() -> None:
    text = """\
models:
  policy: {num_gpu: 8, tensor_model_parallel_size: 2}
  value: {num_gpu: 3, gpu_per_process: 3}
  reward: {num_cpu: 99}
  reference: {num_gpu: 4, num_replica: 4}
"""
    found = problems(text, "1x2x16")
    assert [each.split(": ")[0] for each in found] == [
        "my.yaml:2  models.policy.num_gpu",
        "my.yaml:2  models.policy.tensor_model_parallel_size",
        "my.yaml:3  models.value.gpu_per_process",
        "my.yaml:4  models.reward.num_cpu",
        "my.yaml:5  models.reference.num_gpu",
    ]
    assert (
        "in all 7 GPUs are asked for, the cluster has 2: 5 short: reference[2], reference[3], value[0] find" in found[4]
    )


def test_a_demand_that_stands_nowhere_is_placed_at_its_section_or_the_defaults() -> None:
    assert problems("models:\n  policy: {}\n  reward: {}\n", [Node("a", 1)])[0].startswith(
        "my.yaml:3  models.reward.cpu_per_process: in all 2 cores are asked for, the cluster has 1"
    )
    with pytest.raises(ConfigError, match=r"defaults  models\.b\.cpu_per_process: in all 2 cores"):
        place(Config(), ["a", "b"], [Node("a", 1)])


def test_what_is_refused_for_a_cluster_is_kept_for_one_process() -> None:
    config = load_config_text("models: {policy: {num_gpu: 8, tensor_model_parallel_size: 2}}")
    assert config.models["policy"].num_gpu == 8
