"""Whether an episode takes as long as its schedule on paper says: rollouts and trainers that sleep known times.

Every module sleeps times from a fixed table. From these times, the replicas and the number of threads, the schedule of
an episode is worked out by list scheduling, with the rules that docs/clusters.md ("What overlaps") and
docs/adr/0005-overlap-without-carried-state.md give:

- a call starts when its inputs are there, the call before it on its replica has ended, and a thread is free (first
  come, first served);
- batches go round the replicas, whatever these are doing;
- twice as many batches are in flight as the modules of the flow have replicas, and they come out in batch order;
- ``dynamic``: a training batch starts once its experience is out; ``fixed``: once all experience is;
- a module that isn't thread-safe runs on the driver's thread, which hands out nothing else meanwhile;
- ``local_threads: 1`` runs every call in turn.

The measured wall time is that between the first start and the last end of any step in an episode, by ``time.monotonic``
inside of the steps.

    python benchmarks/streaming.py [--episodes 5] [--scale 1.0]

A busy machine makes every call a little longer than its sleep: ``--scale 3`` has all sleep three times as long.

Prints a table and exits with 1 where the median over episodes is off by more than 10 %, or where, with ``dynamic``, the
first ``train_step`` of an episode doesn't begin before its last rollout ends.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import io
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from chatlearn import BaseModule, Engine, Environment, Trainer, init

TOLERANCE = 0.1
BATCH = 4
JITTER = (1.0, 0.7, 1.4, 0.9, 1.2, 0.6, 1.1, 0.8, 1.3, 1.0, 0.75, 1.25, 0.95)
"""A call's share of its module's usual time, by its number."""
SCALE = [1.0]
"""What all times are multiplied by, by ``--scale``."""


@dataclass(frozen=True)
class Stage:
    """A module of the environment's flow.

    Attributes:
        name: of the module.
        milliseconds: that a call usually sleeps.
        inputs: stages that it reads; the raw batch if empty.
        replicas: of the module.
        pieces: calls per batch.
        uneven: further shares of the usual time, by the call's number; they make replicas unequal.
    """

    name: str
    milliseconds: float
    inputs: tuple[str, ...] = ()
    replicas: int = 1
    pieces: int = 1
    uneven: tuple[float, ...] = (1.0,)

    def seconds(self, number: int) -> float:
        """What call ``number`` (over the whole run) sleeps."""
        shift = sum(map(ord, self.name))
        share = JITTER[(number + shift) % len(JITTER)] * self.uneven[number % len(self.uneven)]
        return SCALE[0] * self.milliseconds / 1e3 * share


@dataclass(frozen=True)
class Shape:
    """One row of the table.

    Attributes:
        title: what is special about it.
        stages: of the environment's flow, in order; the last one's output is what the flow returns.
        trainers: modules of the trainer's flow; all train on every global batch.
        batches: in an episode.
        per_global_batch: batches of experience in a global batch.
        threads: ``runtime_env.local_threads``.
        loader: ``dynamic`` or ``fixed``.
        epochs: training epochs.
        safe_trainers: they are declared thread-safe.
    """

    title: str
    stages: tuple[Stage, ...]
    trainers: tuple[Stage, ...]
    batches: int = 16
    per_global_batch: int = 2
    threads: int = 4
    loader: str = "dynamic"
    epochs: int = 1
    safe_trainers: bool = True

    @property
    def global_batches(self) -> int:
        """In an epoch; the last one is smaller where the counts don't divide."""
        return math.ceil(self.batches / self.per_global_batch)


TWO = (Stage("first", 40), Stage("second", 40, ("first",)))
TRAINER = (Stage("trainer", 60),)
BRANCHES = (
    Stage("policy", 40),
    Stage("reference", 30, ("policy",)),
    Stage("value", 50, ("policy",)),
    Stage("reward", 30, ("reference", "value")),
)
UNEVEN = (Stage("first", 60, replicas=3, uneven=(0.6, 1.6, 1.0, 0.5)), Stage("second", 30, ("first",)))
SHAPES = (
    Shape("two stages", TWO, TRAINER, threads=1),
    Shape("two stages", TWO, TRAINER, threads=1, loader="fixed"),
    Shape("two stages", TWO, TRAINER),
    Shape("two stages", TWO, TRAINER, loader="fixed"),
    Shape("a whole global batch and a half", TWO, TRAINER, batches=18, per_global_batch=12),
    Shape("a global batch per batch", TWO, (Stage("trainer", 30),), per_global_batch=1),
    Shape("two branches that join", BRANCHES, TRAINER, threads=6),
    Shape("two branches that join", BRANCHES, TRAINER, threads=6, loader="fixed"),
    Shape("two branches, fewer threads than work", BRANCHES, TRAINER, threads=2),
    Shape("three uneven replicas", UNEVEN, TRAINER, batches=20, threads=6),
    Shape("three uneven replicas", UNEVEN, TRAINER, batches=20, threads=6, loader="fixed"),
    Shape("replicas of both stages", tuple(Stage(s.name, 80, s.inputs, 3) for s in TWO), TRAINER, 20, threads=8),
    Shape("a slow trainer", TWO, (Stage("trainer", 200),)),
    Shape("two slow trainers side by side", TWO, (Stage("actor", 200), Stage("critic", 140))),
    Shape("a fast trainer", TWO, (Stage("trainer", 20),)),
    Shape("a trainer that isn't thread-safe", TWO, TRAINER, safe_trainers=False),
    Shape("a slow one that isn't thread-safe", TWO, (Stage("trainer", 200),), safe_trainers=False),
    Shape("two training epochs", TWO, TRAINER, epochs=2),
    Shape(
        "a second stage in halves, on two replicas",
        (Stage("first", 40), Stage("second", 40, ("first",), replicas=2, pieces=2)),
        TRAINER,
        threads=6,
    ),
    Shape(
        "a second stage in halves, on three uneven ones",
        (
            Stage("first", 10),
            Stage("second", 50, ("first",), replicas=3, pieces=2, uneven=(0.2, 1.8, 0.9, 1.8, 0.2, 1.1, 0.3)),
        ),
        TRAINER,
        threads=8,
    ),
)


# -- on paper --


@dataclass
class Call:
    """A call on paper: it starts when all calls that it needs (by index) have ended."""

    seconds: float
    needs: set[int]
    on_driver: bool = False


@dataclass
class Paper:
    """The calls of one episode, in the order in which the driver hands them out."""

    shape: Shape
    episode: int
    calls: list[Call] = field(default_factory=list)
    rollouts: list[set[int]] = field(default_factory=list)
    last: dict[tuple[str, int], int] = field(default_factory=dict)
    waited_for: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        shape = self.shape
        in_flight = 2 * sum(stage.replicas for stage in shape.stages) if shape.threads > 1 else 1
        trained = 0
        for batch in range(shape.batches):
            self.roll_out(self.episode * shape.batches + batch)
            out = max(batch - in_flight + 1, -1)  # the newest batch that the driver has waited for
            if out >= 0:
                self.waited_for |= self.rollouts[out]
            if shape.loader == "dynamic":
                trained = self.train_on(trained, out + 1)
        for out in range(max(shape.batches - in_flight + 1, 0), shape.batches):
            self.waited_for |= self.rollouts[out]
            if shape.loader == "dynamic":
                trained = self.train_on(trained, out + 1)
        while trained < shape.epochs * shape.global_batches:
            trained = self.train(trained)

    def roll_out(self, batch: int) -> None:
        """One batch through the stages."""
        ends: dict[str, set[int]] = {}
        for stage in self.shape.stages:
            needs = set().union(*(ends[name] for name in stage.inputs))
            numbers = range(batch * stage.pieces, (batch + 1) * stage.pieces)
            ends[stage.name] = {self.add(stage, number, needs) for number in numbers}
        self.rollouts.append(set().union(*ends.values()))

    def train_on(self, trained: int, out: int) -> int:
        """The global batches that are whole with the first ``out`` batches of the episode."""
        whole = self.shape.global_batches if out == self.shape.batches else out // self.shape.per_global_batch
        while trained < whole:
            trained = self.train(trained)
        return trained

    def train(self, trained: int) -> int:
        """One global batch; the driver has waited for its experience."""
        number = self.episode * self.shape.epochs * self.shape.global_batches + trained
        on_driver = not self.shape.safe_trainers
        calls = {self.add(stage, number, set(), on_driver) for stage in self.shape.trainers}
        if on_driver:
            self.waited_for |= calls
        return trained + 1

    def add(self, stage: Stage, number: int, needs: set[int], on_driver: bool = False) -> int:
        """Hands out a call; returns its index."""
        replica = stage.name, number % stage.replicas
        before = {self.last[replica]} if replica in self.last else set()
        if self.shape.threads == 1:
            before |= {len(self.calls) - 1} if self.calls else set()
        self.calls.append(Call(stage.seconds(number), needs | before | self.waited_for, on_driver))
        self.last[replica] = len(self.calls) - 1
        return len(self.calls) - 1

    def seconds(self) -> float:
        """When the last call ends, by list scheduling on the threads."""
        missing = [len(call.needs) for call in self.calls]
        waiting: dict[int, list[int]] = defaultdict(list)
        for index, call in enumerate(self.calls):
            for need in call.needs:
                waiting[need].append(index)
        ready = [(0.0, index) for index, count in enumerate(missing) if count == 0]
        threads, running, now = self.shape.threads, [], 0.0
        while ready or running:
            while ready and (threads > 0 or self.calls[ready[0][1]].on_driver):
                _, index = heapq.heappop(ready)
                threads -= not self.calls[index].on_driver
                heapq.heappush(running, (now + self.calls[index].seconds, index))
            now, ended = heapq.heappop(running)
            threads += not self.calls[ended].on_driver
            for index in waiting[ended]:
                missing[index] -= 1
                if missing[index] == 0:
                    heapq.heappush(ready, (now, index))
        return now


# -- measured --

STEPS: list[tuple[str, float, float]] = []
"""Kind (``rollout`` or ``training``), start and end of every call, by ``time.monotonic`` inside of the steps."""


class Rollout(BaseModule):
    """Sleeps."""

    thread_safe = True

    def __init__(self, name: str, stage: Stage) -> None:
        super().__init__(name)
        self.stage = stage

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        """Gives back what it got."""
        start = time.monotonic()
        time.sleep(self.stage.seconds(iteration))
        STEPS.append(("rollout", start, time.monotonic()))
        return {**data, self.name: data["prompt"]}


class Training(BaseModule):
    """Sleeps."""

    thread_safe = True

    def __init__(self, name: str, stage: Stage) -> None:
        super().__init__(name)
        self.stage = stage

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        """Learns nothing."""
        start = time.monotonic()
        time.sleep(self.stage.seconds(train_info["iteration"]))
        STEPS.append(("training", start, time.monotonic()))


class UnsafeTraining(Training):
    """Sleeps on the driver's thread."""

    thread_safe = False


def measured_episodes(shape: Shape, episodes: int) -> list[list[tuple[str, float, float]]]:
    """The calls of each episode."""
    seen: list[list[tuple[str, float, float]]] = []
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(io.StringIO()):
        init(settings(shape, episodes, output_dir))
        rollouts = {stage.name: Rollout(stage.name, stage) for stage in shape.stages}
        training = Training if shape.safe_trainers else UnsafeTraining
        trainers = [training(stage.name, stage) for stage in shape.trainers]

        def env_flow(batch: Any) -> Any:
            values: dict[str, Any] = {}
            for stage in shape.stages:
                inputs = [values[name] for name in stage.inputs] or [batch]
                values[stage.name] = rollouts[stage.name].forward_step(*inputs)
            return values[shape.stages[-1].name]

        def trainer_flow(batch: Any) -> None:
            for trainer in trainers:
                trainer.train_step(batch)

        engine = Engine(Environment(env_flow), Trainer(trainer_flow)).set_dataset(["prompt"] * 100)
        engine.add_callback("before_episode", lambda info: STEPS.clear())
        engine.add_callback("after_train", lambda info: seen.append(list(STEPS)))
        engine.learn()
        engine.stop()
    return seen


def settings(shape: Shape, episodes: int, output_dir: str) -> dict[str, Any]:
    """The configuration of a shape."""
    models = {
        stage.name: {"num_replica": stage.replicas, "generation_batch_size": BATCH // stage.pieces}
        for stage in (*shape.stages, *shape.trainers)
    }
    return {
        "runtime_env": {"local_threads": shape.threads},
        "models": models,
        "runtime": {
            "num_episode": episodes,
            "sample_per_episode": BATCH * shape.batches,
            "generation_batch_size": BATCH,
            "train_micro_batch_size": BATCH,
            "train_global_batch_size": BATCH * shape.per_global_batch,
            "num_training_epoch": shape.epochs,
            "stream_data_loader_type": shape.loader,
            "output_dir": output_dir,
            "log_interval": episodes,
        },
    }


def problems(shape: Shape, episodes: list[list[tuple[str, float, float]]]) -> Iterator[str]:
    """Prints the row of a shape, and says what is wrong with it."""
    walls = [max(end for *_, end in calls) - min(start for _, start, _ in calls) for calls in episodes]
    papers = [Paper(shape, episode).seconds() for episode in range(len(episodes))]
    leads = [
        max(end for kind, _, end in calls if kind == "rollout")
        - min(start for kind, start, _ in calls if kind == "training")
        for calls in episodes
    ]
    ratio = statistics.median(wall / paper for wall, paper in zip(walls, papers, strict=True))
    lead = statistics.median(leads)
    row = f"{shape.threads:>7}  {shape.loader:<7}  {statistics.median(papers):>7.3f}  {statistics.median(walls):>8.3f}"
    print(f"{shape.title:<46}  {row}  {ratio:>6.3f}  {lead:>6.3f}", flush=True)
    if abs(ratio - 1) > TOLERANCE:
        yield f"{shape.title}: {ratio:.3f} times the time on paper"
    if shape.loader == "dynamic" and min(leads) <= 0:
        yield f"{shape.title}: with dynamic, training began after the last rollout"
    if shape.loader == "fixed" and max(leads) > 0:
        yield f"{shape.title}: with fixed, training began before the last rollout had ended"


def main() -> int:
    """Runs the table; returns 1 where something is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    SCALE[0], episodes = options.scale, options.episodes
    print("Seconds of an episode, median over episodes; lead: from the first training to the end of the last rollout")
    print(f"{'':<46}  threads  loader     paper  measured   ratio    lead")
    wrong = [text for shape in SHAPES for text in problems(shape, measured_episodes(shape, episodes))]
    for text in wrong:
        print(f"OFF: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
