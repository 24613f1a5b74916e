"""What Ray itself costs: the calls of a six-model flow on bare actors, without anything of chatlearn around them."""

from __future__ import annotations

import time
from typing import Any

import ray
import torch


class Bare:
    """An actor that does what a step of the flow does.

    Args:
        name: of the model.
        rows: of its batches.
    """

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.zeros = name, torch.zeros(rows, 8)

    def prompts(self, rows: int) -> dict[str, Any]:
        """A batch of prompts."""
        return {"prompt": ["prompt"] * rows}

    def forward_step(self, *batches: dict[str, Any]) -> dict[str, Any]:
        """Returns its input and one small tensor."""
        data = {key: value for batch in batches for key, value in batch.items()}
        return {**data, self.name: self.zeros}

    def train_step(self, *batches: dict[str, Any]) -> None:
        """Learns nothing."""

    def nothing(self, value: bytes) -> bytes:
        """Answers."""
        return value


def bare_actors(names: list[str], rows: int) -> list[Any]:
    """One actor for each name, ready."""
    actors = [ray.remote(Bare).options(num_cpus=0).remote(name, rows) for name in names]
    ray.get([actor.nothing.remote(b"") for actor in actors])
    return actors


def chain_seconds(actors: list[Any], samples: int, batch: int, global_batch: int) -> float:
    """Seconds of one episode: policy, reference and value, reward, and two trainers on global batches."""
    policy, reference, reward, value, *trainers = actors
    start = time.perf_counter()
    outputs = []
    for _ in range(samples // batch):
        made = policy.forward_step.remote(policy.prompts.remote(batch))
        outputs.append(reward.forward_step.remote(reference.forward_step.remote(made), value.forward_step.remote(made)))
    size = global_batch // batch
    steps = []
    for first in range(0, len(outputs), size):
        steps += [trainer.train_step.remote(*outputs[first : first + size]) for trainer in trainers]
    ray.get(steps)
    return time.perf_counter() - start


def pipelined_seconds(actors: list[Any], num_calls: int, window: int, value: bytes) -> float:
    """Seconds of so many calls in turn on these actors, with ``window`` on their way, each answer fetched."""
    start = time.perf_counter()
    on_their_way = []
    for number in range(num_calls):
        on_their_way.append(actors[number % len(actors)].nothing.remote(value))
        if len(on_their_way) == window:
            ray.get(on_their_way)
            on_their_way = []
    ray.get(on_their_way)
    return time.perf_counter() - start
