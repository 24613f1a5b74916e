"""Calls that overlap: which may be under way together, which wait, and that no number depends on it.

Proofs are meetings: steps that wait for each other inside of their bodies fail unless they run side by side. Whether an
episode takes as long as its schedule on paper says is measured by ``benchmarks/streaming.py``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from watching import Room, Visit

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer


class Visitor(BaseModule):
    """Its steps visit the room; a training is another visitor than an inference step."""

    thread_safe = True

    def __init__(self, name, room):
        self.room = room

    def forward_step(self, data):
        with self.room.visit(f"{self.name}[{self.replica_id}]"):
            return data

    def train_step(self, data, train_info):
        with self.room.visit(f"{self.name} trains"):
            pass


class UnsafeVisitor(Visitor):
    thread_safe = False


def pipeline(room: Room, kind: type = Visitor) -> tuple[Any, Any]:
    """Two stages, and a trainer."""
    first, second, trainer = kind("first", room), kind("second", room), kind("trainer", room)
    return lambda batch: second.forward_step(first.forward_step(batch)), lambda batch: trainer.train_step(batch)


def run(
    folder: Path,
    flow: Any,
    train: Any,
    *,
    threads: int,
    loader: str,
    models: dict[str, Any] | None = None,
    isolate: bool = False,
    **runtime: Any,
) -> None:
    """Rollouts of 4 samples, global batches of 8; unless told otherwise one episode of 32 samples."""
    sizes = {"num_episode": 1, "sample_per_episode": 32, "generation_batch_size": 4, **runtime}
    config = toys.settings(folder, stream_data_loader_type=loader, **sizes)
    environment = {"local_threads": threads, "isolate": isolate}
    chatlearn.init({**config, "models": models or {}, "runtime_env": environment})
    engine = Engine(Environment(flow), Trainer(train)).set_dataset(range(100))
    engine.learn()
    engine.stop()


def pairs(*visitors: str) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in itertools.combinations(visitors, 2)}


def test_stages_and_training_are_under_way_together(tmp_path: Path) -> None:
    """8 rollouts, 4 global batches. On paper training batch i has rollouts 2i and 2i + 1, so it begins when the second
    stage turns to rollout 2i + 2 and the first to 2i + 3.
    """
    meetings: list[set[Visit]] = [
        {("trainer trains", i), ("second[0]", 2 * i + 2), ("first[0]", 2 * i + 3)} for i in range(3)
    ]
    room = Room(meetings)
    run(tmp_path, *pipeline(room), threads=4, loader="dynamic")
    assert room.together == pairs("trainer trains", "second[0]", "first[0]")


def test_training_begins_before_the_last_rollout_ends(tmp_path: Path) -> None:
    room = Room([{("trainer trains", 0), ("second[0]", 7)}])
    run(tmp_path, *pipeline(room), threads=2, loader="dynamic")
    assert pairs("trainer trains", "second[0]") <= room.together


@pytest.mark.parametrize("threads", [1, 4])
def test_what_runs_on_the_drivers_thread_holds_no_finished_batch_back(threads: int, tmp_path: Path) -> None:
    """Whatever may be in flight: a global batch is two rollouts, and is trained on as soon as these are there."""
    room = Room()
    run(tmp_path, *pipeline(room, UnsafeVisitor), threads=threads, loader="dynamic", sample_per_episode=16)
    rollout = ["first[0]", "second[0]"]
    assert room.entered == [*rollout, *rollout, "trainer trains", *rollout, *rollout, "trainer trains"]


def test_fixed_waits_for_the_last_rollout(tmp_path: Path) -> None:
    """The two stages meet each time; no training meets anybody."""
    room = Room([{("second[0]", i), ("first[0]", i + 1)} for i in range(7)])
    run(tmp_path, *pipeline(room), threads=4, loader="fixed")
    assert room.together == pairs("first[0]", "second[0]")
    assert room.entered[-4:] == ["trainer trains"] * 4


@pytest.mark.parametrize(("threads", "kind"), [(1, Visitor), (4, UnsafeVisitor)])
@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
def test_without_threads_and_without_the_promise_steps_run_in_turn_on_the_drivers_thread(
    threads: int, kind: type, loader: str, tmp_path: Path
) -> None:
    room = Room()
    run(tmp_path, *pipeline(room, kind), threads=threads, loader=loader)
    assert Counter(room.entered) == {"first[0]": 8, "second[0]": 8, "trainer trains": 4}
    assert room.together == set()
    assert room.threads == {threading.get_ident()}


def test_a_module_in_both_flows_makes_training_wait_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = Room([{("second[0]", i), ("shared[0]", i + 1)} for i in range(7)])
    shared, second = Visitor("shared", room), Visitor("second", room)
    run(
        tmp_path,
        lambda batch: second.forward_step(shared.forward_step(batch)),
        lambda batch: shared.train_step(batch),
        threads=3,
        loader="dynamic",
    )
    assert "shared is in the environment's and in the trainer's flow" in capsys.readouterr().out
    assert room.together == pairs("shared[0]", "second[0]")
    assert room.entered[-4:] == ["shared trains"] * 4


def test_replicas_share_the_batches_and_work_side_by_side(tmp_path: Path) -> None:
    """12 rollouts over three replicas of both stages: while the second stage has one round, the first has the next."""
    replicas = range(3)
    meetings: list[set[Visit]] = [
        {(f"first[{r}]", i + 1) for r in replicas} | {(f"second[{r}]", i) for r in replicas} for i in range(3)
    ]
    room = Room(meetings)
    models = {"first": {"num_replica": 3}, "second": {"num_replica": 3}, "trainer": {}}
    run(tmp_path, *pipeline(room), threads=6, loader="fixed", models=models, sample_per_episode=48)
    labels = [f"{stage}[{r}]" for stage in ("first", "second") for r in replicas]
    assert pairs(*labels) <= room.together
    assert Counter(room.entered) == {**dict.fromkeys(labels, 4), "trainer trains": 6}


def test_steps_wait_for_what_comes_before_without_reading_it(tmp_path: Path) -> None:
    """The first step gives the second every chance to begin too early."""
    begun = [threading.Event() for _ in range(3)]
    ended: list[tuple[str, int]] = []

    class First(BaseModule):
        thread_safe = True

        def forward_step(self, data, iteration):
            assert not begun[iteration].wait(0.1), "the step after this one has begun"
            ended.append(("first", iteration))
            return data

    class Second(BaseModule):
        thread_safe = True

        def forward_step(self, data, iteration):
            begun[iteration].set()
            ended.append(("second", iteration))
            return data

    first, second, trainer = First("first"), Second("second"), Visitor("trainer", Room())

    def flow(batch):
        out = first.forward_step(batch)
        with chatlearn.after(out):
            return second.forward_step(batch)

    run(tmp_path, flow, lambda batch: trainer.train_step(batch), threads=4, loader="fixed", sample_per_episode=12)
    assert sorted(ended) == [(name, i) for name in ("first", "second") for i in range(3)]
    assert all(ended.index(("first", i)) < ended.index(("second", i)) for i in range(3))


class Noise(BaseModule):
    thread_safe = True

    def forward_step(self, data):
        return {**data, self.name: self.uniforms(self.batch.sample_ids, 1)}


class Learner(BaseModule):
    """A trainer whose weights depend on every bit and on the order of what it gets."""

    thread_safe = True

    def setup(self):
        self.model = torch.nn.Linear(1, 1)

    def train_step(self, data, train_info):
        with torch.no_grad():
            for micro, ids in zip(data, train_info["sample_ids"], strict=True):
                toys.EVENTS.append(("ids", *ids))
                self.model.weight.mul_(0.9).add_((micro["first"] * micro["second"]).sum())
                self.model.bias.add_(torch.randn(1, generator=self.generator))
        toys.EVENTS.append(("weights", self.model.weight.item(), self.model.bias.item()))


@pytest.mark.parametrize("isolate", [False, True])
def test_threads_replicas_and_loader_change_no_bit(isolate: bool, tmp_path: Path) -> None:
    records = []
    for threads, replicas, loader in itertools.product((1, 3), (1, 3), ("fixed", "dynamic")):
        toys.EVENTS.clear()
        first, second, learner = Noise("first"), Noise("second"), Learner("learner")
        run(
            tmp_path,
            lambda batch, first=first, second=second: second.forward_step(first.forward_step(batch)),
            lambda batch, learner=learner: learner.train_step(batch),
            threads=threads,
            loader=loader,
            isolate=isolate,
            models={
                "first": {"num_replica": replicas},
                "second": {"num_replica": replicas, "generation_batch_size": 3},
                "learner": {},
            },
            num_episode=3,
            sample_per_episode=35,
            num_training_epoch=2,
        )
        records.append(list(toys.EVENTS))
    assert sum(len(event) - 1 for event in records[0] if event[0] == "ids") == 3 * 35 * 2
    assert all(record == records[0] for record in records)


class Failing(BaseModule):
    thread_safe = True

    def forward_step(self, data):
        raise ValueError("the judge is out")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_on_a_thread_comes_out_as_everywhere(threads: int, tmp_path: Path) -> None:
    before = threading.enumerate()
    failing, trainer = Failing("failing"), Visitor("trainer", Room())
    with pytest.raises(chatlearn.StepError, match=r"(?s)the judge is out.*failing\[0\]\.forward_step.*episode 1"):
        run(
            tmp_path,
            lambda batch: failing.forward_step(batch),
            lambda batch: trainer.train_step(batch),
            threads=threads,
            loader="dynamic",
        )
    assert set(threading.enumerate()) <= set(before), "no thread is left over"


class Drawing(BaseModule):
    """Builds the data set and draws from its own generator, slowly enough that the next prompts are read meanwhile."""

    thread_safe = True

    def forward_step(self, data):
        time.sleep(0.005)
        return {"drawn": torch.rand(len(self.batch), generator=self.generator), "id": list(self.batch.sample_ids)}


def test_a_generator_belongs_to_its_call_whoever_reads_prompts_meanwhile(tmp_path):
    drawn = []
    for threads in (1, 4):
        found = {}

        def note(info, found=found):
            for part in info.experience.experience:
                batch = part.sources[0].result()
                found.update(zip(batch["id"], batch["drawn"].tolist(), strict=True))

        config = toys.settings(tmp_path / str(threads), sample_per_episode=64)
        chatlearn.init({**config, "runtime_env": {"local_threads": threads}})
        module = Drawing("module")
        engine = Engine(Environment(lambda batch, module=module: module.forward_step(batch)))
        engine.add_callback("after_experience", note).set_dataset(list(range(10))).learn()
        drawn.append(found)
    assert len(drawn[0]) == 128
    assert drawn[0] == drawn[1]
