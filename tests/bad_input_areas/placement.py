"""Demands that no cluster, or not this one, can meet: found by ``chatlearn check --cluster`` before anything starts."""

from __future__ import annotations

from pathlib import Path

from bad_input_areas.cause import Cause, Causes, Words
from bad_input_areas.program import command

from chatlearn import ConfigError

CAUSES = Causes()


def on_cluster(sentence: str, cluster: str, text: str, says: Words, at: Words, fix: Words) -> None:
    """Adds a check of ``my.yaml`` against a cluster."""

    def act() -> None:
        Path("my.yaml").write_text(text, encoding="utf-8")
        command("check", "-c", "my.yaml", "--cluster", cluster)

    CAUSES.append(Cause(sentence, ConfigError, says, at, fix, act))


on_cluster(
    "A model has GPUs for more processes than replicas.",
    "2x8",
    "models:\n  policy:\n    num_gpu: 8\n",
    says="policy has 8 GPUs for 1 replica, which would be 8 processes; one process a replica runs today",
    at="my.yaml:3  models.policy.num_gpu",
    fix="set num_replica: 8 (a trained module has one replica) or num_gpu: 1",
)
on_cluster(
    "A model's GPUs can't be divided among its replicas.",
    "2x8",
    "models:\n  policy:\n    num_gpu: 5\n    num_replica: 2\n",
    says="policy has 5 GPUs for 2 replicas, but 1 for each (gpu_per_process) make 2",
    at="my.yaml:3  models.policy.num_gpu",
    fix="set num_replica: 5 (a trained module has one replica) or num_gpu: 2",
)
on_cluster(
    "A model is to be divided among several processes.",
    "2x8",
    "models:\n  policy:\n    num_gpu: 2\n    num_replica: 2\n    tensor_model_parallel_size: 2\n",
    says="is 2, which divides a replica of policy among processes; one process a replica runs today",
    at="my.yaml:5  models.policy.tensor_model_parallel_size",
    fix="set it to 1",
)
on_cluster(
    "A replica asks for more GPUs than a node has.",
    "4x2",
    "models:\n  policy:\n    num_gpu: 3\n    gpu_per_process: 3\n",
    says="policy asks 3 GPUs a replica, nodes have 2",
    at="my.yaml:4  models.policy.gpu_per_process",
    fix="set gpu_per_process: 2 and num_gpu: 2, or take larger nodes",
)
on_cluster(
    "The models ask for more GPUs than the cluster has.",
    "1x8",
    "models:\n  policy: {num_gpu: 6, num_replica: 6}\n  reward: {num_gpu: 6, num_replica: 6}\n",
    says="in all 12 GPUs are asked for, the cluster has 8: 4 short: reward[2], reward[3], reward[4], reward[5]",
    at="my.yaml:3  models.reward.num_gpu",
    fix="take 4 GPUs more, lower num_gpu, or let models share GPUs (colocation)",
)
on_cluster(
    "The GPUs of a cluster are enough, but lie on different nodes.",
    "2x5",
    "models:\n  policy: {num_gpu: 9, num_replica: 3, gpu_per_process: 3}\n",
    says="policy[2] finds no place: 3 GPUs and 1 core of one node are asked for, and no node has so much left",
    at="my.yaml:2  models.policy.num_gpu",
    fix="ask for sizes that divide what a node has",
)
on_cluster(
    "A replica asks for more cores than a node has.",
    "2x0x16",
    "models:\n  reward:\n    num_cpu: 64\n",
    says="reward asks 64 cores a replica, nodes have 16",
    at="my.yaml:3  models.reward.num_cpu",
    fix="set num_cpu: 16 or less",
)
on_cluster(
    "The models ask for more cores than the cluster has.",
    "2x0x4",
    "models:\n  reward:\n    num_replica: 5\n    num_cpu: 2\n",
    says="in all 10 cores are asked for, the cluster has 8: 2 short: reward[4] finds no place",
    at="my.yaml:4  models.reward.num_cpu",
    fix="take 2 cores more, or lower num_cpu or num_replica",
)
on_cluster(
    "A group of models has to be on one node, and no node is large enough.",
    "2x4",
    "models:\n  policy: {num_gpu: 6, num_replica: 3, gpu_per_process: 2}\n"
    "  reward: {num_gpu: 6, num_replica: 2, gpu_per_process: 3}\nruntime:\n  colocation: ['policy,reward']\n",
    says="share 6 GPUs and 3 cores, which have to be on one node; nodes have 4 GPUs",
    at="my.yaml:5  runtime.colocation",
    fix="give the models of the group sizes that divide each other",
)
