"""What a parameter sync between processes of one machine costs: 400 MB of float32 in 100 tensors.

Beside it, in the same run and in turn: as many bytes copied within each of two of these processes at the same time, by
plain ``memcpy``. The ratio is the time of these copies over that of the sync, checksums and calls included.

    python benchmarks/sync.py                      the table
    python benchmarks/sync.py --alternations 21    medians of so many

The first sync, which gets its memory from the system, is shown apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from chatlearn import BaseModule
from chatlearn.config.load import load_config
from chatlearn.config.schema import Config
from chatlearn.modules.base import describe
from chatlearn.runtime.base import Cluster, Handle, create_cluster
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.sync.sync import ParameterSync

NUM_TENSORS, ELEMENTS = 100, 1_000_000
MEGABYTES = NUM_TENSORS * ELEMENTS * 4 / 1e6


class Holder(BaseModule):
    """Weights, and as much memory to copy as there is of them."""

    def setup(self) -> None:
        """Makes both."""
        self.model = torch.nn.ParameterList([torch.randn(1000, ELEMENTS // 1000) for _ in range(NUM_TENSORS)])
        self.here, self.there = (torch.ones(NUM_TENSORS * ELEMENTS).numpy() for _ in range(2))  # as weights have it

    def forward_step(self, data: Any) -> Any:
        """Does nothing."""
        return data


def memcpy(module: Holder) -> tuple[float, float]:
    """Copies the memory; when it began and ended, in seconds of the machine's clock."""
    start = time.monotonic()
    np.copyto(module.there, module.here)
    return start, time.monotonic()


def change(module: Holder) -> None:
    """As a train step does."""
    with torch.no_grad():
        for parameter in module.model:
            parameter.add_(1)


def total(module: Holder) -> float:
    """Something of every weight."""
    return float(sum(parameter.detach().double().sum() for parameter in module.model))


def memcpy_seconds(cluster: Cluster, handles: list[Handle]) -> float:
    """From the first start to the last end."""
    times = [cluster.get(future) for future in [cluster.call(handle, "apply", memcpy) for handle in handles]]
    return max(end for _, end in times) - min(start for start, _ in times)


def measure(cluster: Cluster, config: Config, num_replica: int, shares: bool, alternations: int) -> str:
    """One line of the table."""
    model = config.model("policy").model_copy(update={"share_weights": shares})
    settings = ReplicaSettings(0, {}, model, config.runtime)
    name = f"policy_{num_replica}_{'shared' if shares else 'copied'}"
    source = cluster.spawn(describe(Holder(f"trainer_of_{name}")), 0, settings)
    replicas = [cluster.spawn(describe(Holder(name)), i, settings) for i in range(num_replica)]
    handles = [source, *replicas]
    for future in [cluster.call(handle, "setup") for handle in handles]:
        cluster.get(future)
    sync = ParameterSync(cluster, source, replicas)
    seconds: list[float] = []
    copies: list[float] = [memcpy_seconds(cluster, handles[:2])]
    for version in range(1, alternations + 2):
        cluster.get(cluster.call(source, "apply", change))
        start = time.monotonic()
        sync.sync(version)
        seconds.append(time.monotonic() - start)
        copies.append(memcpy_seconds(cluster, handles[:2]))
    totals = {cluster.get(cluster.call(handle, "apply", total)) for handle in handles}
    assert len(totals) == 1, "replicas hold other weights than the source"
    for handle in handles:
        cluster.kill(handle)
    first, later, copy = seconds[0], statistics.median(seconds[1:]), statistics.median(copies[1:])
    ratio = statistics.median(c / s for c, s in zip(copies[2:], seconds[1:], strict=True))
    way = "shared" if shares else "copied"
    return (
        f"| {num_replica} | {way} | {first * 1e3:.0f} | {later * 1e3:.1f} | {min(seconds[1:]) * 1e3:.1f} | "
        f"{copy * 1e3:.1f} | {ratio:.2f} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=15)
    arguments = parser.parse_args()
    config = load_config({"runtime_env": {"backend": "ray"}, "models": {"policy": {}}})
    cluster = create_cluster(config)
    cluster.start()
    try:
        print(f"{MEGABYTES:.0f} MB in {NUM_TENSORS} tensors, medians of {arguments.alternations}, milliseconds")
        print("| replicas | weights | first sync | sync | best | two memcpys at once | ratio |")
        print("|---|---|---|---|---|---|---|")
        for num_replica, shares in ((1, False), (2, False), (1, True), (2, True)):
            print(measure(cluster, config, num_replica, shares, arguments.alternations), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
