"""What checkpoints cost a run that goes on meanwhile: 1 GB of weights, written at once and from a snapshot.

Every second episode ends with a checkpoint; an episode trains for some seconds. Two runs are compared, pair of
episodes by pair, with a third one that saves nothing: one that writes at once (the blocking time), and one that writes
from a snapshot while the next episode trains (the delay).

    python benchmarks/checkpoint.py                   the table
    python benchmarks/checkpoint.py --pairs 7         medians of so many
    python benchmarks/checkpoint.py --gigabytes 0.2   smaller
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import chatlearn
from chatlearn import Engine, TorchModule, Trainer

NUM_TENSORS = 50


class Learner(TorchModule):
    """Weights of some size, and so much work."""

    def setup(self) -> None:
        """Makes them."""
        size = int(self.model_args["gigabytes"] * 1e9 / 4 / NUM_TENSORS)
        self.model = torch.nn.ParameterList([torch.full((size,), 0.5) for _ in range(NUM_TENSORS)])
        self.work = torch.rand(512, 512)

    @torch.no_grad()
    def train_step(self, data: Any) -> None:
        """Changes all weights, and computes for some time."""
        for parameter in self.model:
            parameter.add_(1e-3)
        product = self.work
        for _ in range(self.model_args["products"]):
            product = torch.tanh(product @ self.work)


def products_in(seconds: float) -> int:
    """How many products take so long on this machine."""
    matrix, count, start = torch.rand(512, 512), 0, time.monotonic()
    product = matrix
    while time.monotonic() - start < seconds:
        product = torch.tanh(product @ matrix)
        count += 1
    return count


def episode_seconds(gigabytes: float, products: int, pairs: int, **runtime: Any) -> list[float]:
    """Wall time of each episode, its checkpoint included, but for the first two and the last."""
    times: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = {
            "num_episode": 2 * pairs + 3,
            "sample_per_episode": 1,
            "train_micro_batch_size": 1,
            "output_dir": folder,
            "max_data_ckpt_nums": 1,
            "trace": False,
            "sinks": ["jsonl"],
            **runtime,
        }
        chatlearn.init(
            {"models": {"learner": {"args": {"gigabytes": gigabytes, "products": products}}}, "runtime": settings}
        )
        learner = Learner("learner")
        engine = Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset([1])
        engine.add_callback("before_episode", lambda info: times.append(time.monotonic()))
        engine.learn()
        engine.stop()
    return [after - before for before, after in pairwise(times[2:])]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=6.0, help="that an episode trains")
    options = parser.parse_args()
    products = products_in(options.seconds)
    plain = episode_seconds(options.gigabytes, products, options.pairs)
    blocking = episode_seconds(options.gigabytes, products, options.pairs, save_episode_interval=2)
    snapshot = episode_seconds(options.gigabytes, products, options.pairs, save_episode_interval=2, async_save=True)
    base = statistics.median(plain)
    # the episode with the checkpoint is the second of each pair, and the next pair's first one runs beside the writing
    blocks = statistics.median(sum(pair) - 2 * base for pair in zip(blocking[::2], blocking[1::2], strict=True))
    delays = statistics.median(sum(pair) - 2 * base for pair in zip(snapshot[::2], snapshot[1::2], strict=True))
    print(f"{options.gigabytes:g} GB, medians of {options.pairs} pairs of episodes, seconds")
    print("| an episode without | written at once, longer by | from a snapshot, longer by | ratio |")
    print("|---:|---:|---:|---:|")
    print(f"| {base:.2f} | {blocks:.2f} | {delays:.2f} | {delays / blocks:.2f} |")


if __name__ == "__main__":
    main()
