"""What large batches cost the driver on Ray: 64 MB a batch from one actor to another.

A module makes batches of 16 samples with 4 MB each, and a trainer reads them; samples are logged as by default. Beside
it, in the same process: the same bytes between two bare actors of Ray, and the way that upstream's queues took, through
the driver.

    python benchmarks/payload.py                 32 batches in 8 episodes
    python benchmarks/payload.py --batches 256

Traffic is what the driver's TCP connections sent and received (Linux counts it, ``tcp(7)``); memory is its resident
set, shared memory that it maps included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from chatlearn import BaseModule, Engine, Environment, Trainer, init

SAMPLES, FLOATS = 16, 1_000_000
BATCH_BYTES = SAMPLES * FLOATS * 4
BATCHES_PER_EPISODE = 4
WARM_UP = 2
"""Episodes that are not counted."""

_BYTES_ACKED = 120
"""Where ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` stand in ``struct tcp_info``."""


class Source(BaseModule):
    """Makes batches."""

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        """64 MB."""
        return {**data, "payload": torch.full((SAMPLES, FLOATS), float(iteration))}


class Sink(BaseModule):
    """Reads them."""

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        """Looks at each sample."""
        self.log("first", sum(float(batch["payload"][:, 0].sum()) for batch in data))


@dataclass
class Usage:
    """Of the driver.

    Attributes:
        traffic: bytes over TCP so far, of the connections that are open.
        resident: bytes of its resident set.
    """

    traffic: int
    resident: int

    @staticmethod
    def now() -> Usage:
        """As it is."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return Usage(sum(map(_transferred, _descriptors())), int(status["VmRSS"].split()[0]) * 1024)


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _transferred(descriptor: int) -> int:
    """Bytes that a TCP connection has sent and received; 0 of anything else."""
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    return sum(struct.unpack_from("QQ", info, _BYTES_ACKED))
    return 0


def through_the_engine(batches: int) -> tuple[list[Usage], float]:
    """The driver's usage at the beginning of each episode, and seconds a batch."""
    usages: list[Usage] = []
    times: list[float] = []

    def note(info: Any) -> None:
        usages.append(Usage.now())
        times.append(time.perf_counter())

    episodes = WARM_UP + batches // BATCHES_PER_EPISODE
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(io.StringIO()):
        init(
            {
                "runtime_env": {"backend": "ray"},
                "runtime": {
                    "num_episode": episodes + 1,
                    "sample_per_episode": SAMPLES * BATCHES_PER_EPISODE,
                    "generation_batch_size": SAMPLES,
                    "train_micro_batch_size": SAMPLES,
                    "train_global_batch_size": SAMPLES,
                    "output_dir": output_dir,
                    "log_interval": episodes + 1,
                },
            }
        )
        source, sink = Source("source"), Sink("sink")
        flow = Environment(lambda batch: source.forward_step(batch))
        engine = Engine(flow, Trainer(lambda batch: sink.train_step(batch)))
        engine.add_callback("before_episode", note)
        engine.set_dataset(["prompt"] * 64).learn()
        engine.stop()
    counted = episodes - WARM_UP
    return usages[WARM_UP:], (times[-1] - times[WARM_UP]) / counted / BATCHES_PER_EPISODE


def on_bare_actors(batches: int, through_driver: bool) -> tuple[list[Usage], float]:
    """As :func:`through_the_engine`, between two actors that nothing manages."""
    import ray

    @ray.remote
    class Maker:
        def make(self, number: int) -> torch.Tensor:
            return torch.full((SAMPLES, FLOATS), float(number))

    @ray.remote
    class Reader:
        def read(self, payload: torch.Tensor) -> float:
            return float(payload[:, 0].sum())

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", _node_ip_address="127.0.0.1")
    maker, reader = Maker.remote(), Reader.remote()
    usages: list[Usage] = []
    for number in range(WARM_UP * BATCHES_PER_EPISODE + batches + 1):
        if number == WARM_UP * BATCHES_PER_EPISODE:
            start = time.perf_counter()
        if number >= WARM_UP * BATCHES_PER_EPISODE and number % BATCHES_PER_EPISODE == 0:
            usages.append(Usage.now())
        made = maker.make.remote(number)
        ray.get(reader.read.remote(ray.get(made).clone() if through_driver else made))
    seconds = (time.perf_counter() - start) / (batches + 1)
    ray.shutdown()
    return usages, seconds


def row(name: str, usages: list[Usage], seconds: float) -> str:
    """A line of the table: what each batch added, and the most that the driver held beyond the beginning."""
    batches = (len(usages) - 1) * BATCHES_PER_EPISODE
    traffic = (usages[-1].traffic - usages[0].traffic) / batches
    growth = (usages[-1].resident - usages[0].resident) / batches
    most = max(usage.resident for usage in usages) - usages[0].resident
    return f"{name:<28}{traffic / 1e6:>12.4f}{growth / 1e6:>12.4f}{most / 1e6:>12.2f}{seconds * 1e3:>12.0f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=32)
    batches = max(parser.parse_args().batches // BATCHES_PER_EPISODE, 1) * BATCHES_PER_EPISODE
    print(f"{batches} batches of {BATCH_BYTES / 1e6:.0f} MB from actor to actor; the driver, in MB a batch:")
    print(f"{'':<28}{'traffic':>12}{'memory':>12}{'most MB':>12}{'ms a batch':>12}")
    print(row("engine", *through_the_engine(batches)), flush=True)
    print(row("bare actors", *on_bare_actors(batches, through_driver=False)), flush=True)
    print(row("bare actors, by the driver", *on_bare_actors(batches, through_driver=True)), flush=True)


if __name__ == "__main__":
    main()
