"""What the engine itself costs: a six-model PPO flow of modules that do nothing.

Batches of 16, micro-batches of 16, global batches of 64, everything inline; what a run writes (metrics, samples, trace)
is included. Beside it, in the same process and in turn: the same number of calls through a plain chain of thread pools
(one per model, a queue's worth of futures between them) and in a bare loop.

    python benchmarks/overhead.py                  milliseconds a sample at 1,024 samples an episode
    python benchmarks/overhead.py --scaling        the same for 1,024 to 65,536 samples
    python benchmarks/overhead.py --memory         growth of the process over 500 episodes after the tenth
    python benchmarks/overhead.py --cluster ray    every model a process: beside the same calls on bare actors of Ray,
                                                   and the seconds from init() to the first episode

Prints medians over episodes; the machine's other work shows in the two references as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from chatlearn import BaseModule, RLHFEngine, init

BATCH, GLOBAL = 16, 64
ZEROS = torch.zeros(BATCH, 8)


class Inference(BaseModule):
    """Returns its input and one small tensor."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        """Does nothing."""
        return {**data, self.name: ZEROS}


class Training(BaseModule):
    """Learns nothing."""

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        """Does nothing."""


def engine_seconds(samples: int, episodes: int, on_episode: Any = None, backend: str = "local") -> list[float]:
    """Seconds of each episode through the engine."""
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(io.StringIO()):
        init(
            {
                "runtime_env": {"backend": backend},
                "runtime": {
                    "num_episode": episodes,
                    "sample_per_episode": samples,
                    "generation_batch_size": BATCH,
                    "train_micro_batch_size": BATCH,
                    "train_global_batch_size": GLOBAL,
                    "output_dir": output_dir,
                    "log_interval": episodes,
                },
            }
        )
        names = ("policy", "reference", "reward", "value")
        engine = RLHFEngine(*map(Inference, names), Training("ppo_policy"), Training("ppo_value"))
        engine.add_callback("before_episode", lambda info: starts.append(time.perf_counter()))
        if on_episode is not None:
            engine.add_callback("before_episode", lambda info: on_episode(info.episode))
        engine.set_dataset(["prompt"] * 4096).learn()
        starts.append(time.perf_counter())
        engine.stop()
    return [end - start for start, end in itertools.pairwise(starts)]


def pools_seconds(samples: int, episodes: int) -> list[float]:
    """Seconds of each episode through a chain of thread pools, one thread per model."""
    pools = [ThreadPoolExecutor(1) for _ in range(6)]
    seconds = []
    for _ in range(episodes):
        start = time.perf_counter()
        batches = []
        for _ in range(samples // BATCH):
            policy = pools[0].submit(_add, {"prompt": ["prompt"] * BATCH}, "policy")
            reference = pools[1].submit(lambda p=policy: _add(p.result(), "reference"))
            value = pools[2].submit(lambda p=policy: _add(p.result(), "value"))
            reward = pools[3].submit(lambda r=reference, v=value: _add({**r.result(), **v.result()}, "reward"))
            batches.append(reward)
        size = GLOBAL // BATCH
        groups = [batches[i : i + size] for i in range(0, len(batches), size)]
        steps = [pools[4 + i].submit(lambda g=group: [b.result() for b in g]) for group in groups for i in (0, 1)]
        for step in steps:
            step.result()
        seconds.append(time.perf_counter() - start)
    for pool in pools:
        pool.shutdown()
    return seconds


def loop_seconds(samples: int, episodes: int) -> list[float]:
    """Seconds of each episode in a bare loop."""
    seconds = []
    for _ in range(episodes):
        start = time.perf_counter()
        batches = []
        for _ in range(samples // BATCH):
            batch = {"prompt": ["prompt"] * BATCH}
            for name in ("policy", "reference", "value", "reward"):
                batch = _add(batch, name)
            batches.append(batch)
        for group in range(0, len(batches), GLOBAL // BATCH):
            for _ in range(2):
                list(batches[group : group + GLOBAL // BATCH])
        seconds.append(time.perf_counter() - start)
    return seconds


def _add(batch: dict[str, Any], name: str) -> dict[str, Any]:
    return {**batch, name: ZEROS}


def per_sample(seconds: list[float], samples: int) -> float:
    """Median milliseconds a sample; the first two episodes warm up."""
    return statistics.median(seconds[2:]) / samples * 1e3


def ray_table(alternations: int) -> None:
    """The engine on Ray, beside the same calls on bare actors."""
    import ray
    from bare_ray import bare_actors, chain_seconds

    start, begins = time.perf_counter(), []
    engine_seconds(BATCH, 1, lambda episode: begins.append(time.perf_counter()), "ray")
    print(f"from init() to the first episode: {begins[0] - start:.1f} s")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
    actors = bare_actors(["policy", "reference", "reward", "value", "ppo_policy", "ppo_value"], BATCH)
    rows: list[list[float]] = []
    print(f"{'engine':>10}  {'bare':>10}  milliseconds a sample, 1,024 samples an episode")
    for _ in range(alternations):
        bare = [chain_seconds(actors, 1024, BATCH, GLOBAL) for _ in range(7)]
        rows.append([per_sample(engine_seconds(1024, 9, backend="ray"), 1024), per_sample(bare, 1024)])
        print("  ".join(f"{value:>10.4f}" for value in rows[-1]), flush=True)
    engine, bare_median = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(engine / bare for engine, bare in rows)
    print(f"median: engine {engine:.4f}, bare {bare_median:.4f} ms; engine ÷ bare {ratio:.2f}")
    ray.shutdown()


def resident_mib() -> float:
    """Memory of the process (Linux; elsewhere its peak)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Runs one of the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--cluster", choices=("local", "ray"), default="local")
    arguments = parser.parse_args()
    if arguments.cluster == "ray":
        ray_table(arguments.alternations)
        return
    if arguments.memory:
        marks: dict[int, float] = {}
        engine_seconds(1024, 511, lambda episode: marks.setdefault(episode, resident_mib()))
        print(f"after episode 10: {marks[10]:.1f} MiB, after episode 510: {marks[510]:.1f} MiB")
        print(f"growth: {marks[510] - marks[10]:.1f} MiB in 500 episodes of 1,024 samples")
        return
    if arguments.scaling:
        print(f"{'samples':>8}  {'ms/sample':>10}  {'÷ 1,024':>8}")
        first = None
        for samples in (1024, 4096, 16384, 65536):
            cost = per_sample(engine_seconds(samples, 7), samples)
            first = first or cost
            print(f"{samples:>8}  {cost:>10.4f}  {cost / first:>8.2f}", flush=True)
        return
    rows = []
    print(f"{'engine':>10}  {'pools':>10}  {'loop':>10}  milliseconds a sample, 1,024 samples an episode")
    for _ in range(arguments.alternations):
        rows.append([per_sample(run(1024, 12), 1024) for run in (engine_seconds, pools_seconds, loop_seconds)])
        print("  ".join(f"{value:>10.4f}" for value in rows[-1]), flush=True)
    engine, pools, loop = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"median: engine {engine:.4f}, pools {pools:.4f}, loop {loop:.4f} ms; engine ÷ pools {engine / pools:.2f}")


if __name__ == "__main__":
    main()
