"""How many calls a second go through the driver of a Ray cluster: 65,536 calls to two replicas, in a bounded window.

Beside them, in the same run and in turn, the same number through Ray's own pipelined calls to two bare actors with
arguments and results of the same size; and the driver's memory after each tenth of the calls.

    python benchmarks/calls.py [--calls 65536] [--alternations 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import deque
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
from bare_ray import bare_actors, pipelined_seconds
from overhead import resident_mib

from chatlearn import BaseModule
from chatlearn.config.schema import Config
from chatlearn.modules.base import describe
from chatlearn.runtime.base import Cluster, Handle, create_cluster
from chatlearn.runtime.calls import ReplicaSettings

WINDOW = 64
VALUE = b"x" * 200


class Empty(BaseModule):
    """Does nothing."""


def answer(module: BaseModule, value: bytes) -> bytes:
    """What a bare actor does too."""
    return value


def cluster_seconds(cluster: Cluster, handles: list[Handle], num_calls: int, memory: list[float]) -> float:
    """Seconds of so many calls, each answer fetched."""
    start = time.perf_counter()
    on_their_way: deque[Any] = deque()
    for number in range(num_calls):
        on_their_way.append(cluster.call(handles[number % len(handles)], "apply", answer, VALUE))
        if len(on_their_way) == WINDOW:
            cluster.get(on_their_way.popleft())
        if number % (num_calls // 10) == 0:
            memory.append(resident_mib())
    while on_their_way:
        cluster.get(on_their_way.popleft())
    return time.perf_counter() - start


def main() -> None:
    """Prints one row for each alternation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=65536)
    parser.add_argument("--alternations", type=int, default=3)
    arguments = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    actors = bare_actors(["first", "second"], 1)
    cluster = create_cluster(Config(runtime_env={"backend": "ray"}))  # pyright: ignore[reportArgumentType]
    cluster.start()
    settings = ReplicaSettings(seed=0, model_args={}, module_args=None, runtime_args=None, replaceable=True)
    handles = [cluster.spawn(describe(Empty("empty")), replica, settings) for replica in range(2)]
    cluster_seconds(cluster, handles, 2000, [])
    pipelined_seconds(actors, 2000, WINDOW, VALUE)
    ratios: list[float] = []
    for _ in range(arguments.alternations):
        memory: list[float] = []
        bare = pipelined_seconds(actors, arguments.calls, WINDOW, VALUE)
        ours = cluster_seconds(cluster, handles, arguments.calls, memory)
        ratios.append(bare / ours)
        print(
            f"Ray {arguments.calls / bare:8.0f}/s  chatlearn {arguments.calls / ours:8.0f}/s  ratio {ratios[-1]:.2f}  "
            f"driver {memory[1]:.1f} -> {memory[-1]:.1f} MiB",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} of {len(ratios)}")
    cluster.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
