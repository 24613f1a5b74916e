"""Flows whose steps make or drop rows, with several batches under way: who meets, and that nothing depends on timing.

Proofs are meetings, as in ``test_streaming.py``.
"""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from engine_cases import rows, settings
from watching import Room, Watch

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, Trainer

SAMPLES = 24
"""Of an episode; rollouts have 4."""


class Rollout(BaseModule):
    """Prompts as numbers in ``x``, with noise of the sample and of the call."""

    thread_safe = True

    def forward_step(self, data, iteration=0):
        with Watch.room.visit(f"{self.name}[{self.replica_id}]"):
            toys.EVENTS.append((self.name, iteration, list(self.batch.sample_ids)))
            noise = self.uniforms(self.batch.sample_ids, 1)[:, 0] + torch.rand(1, generator=self.generator)
            return {"x": torch.tensor(data["prompt"]), "noise": noise}

    eval_step = forward_step


class Reshaping(Rollout):
    @chatlearn.step(filters=True)
    def keep(self, data):
        """Two of three."""
        with Watch.room.visit(f"{self.name}[{self.replica_id}]"):
            kept = [row for row, x in enumerate(data["x"].tolist()) if x % 3]
            return {"kept": data["x"][kept], "source_rows": kept}

    @chatlearn.step(expands=True)
    def turns(self, data):
        """0 to 4 rows of a row."""
        with Watch.room.visit(f"{self.name}[{self.replica_id}]"):
            source = [row for row, x in enumerate(data["x"].tolist()) for _ in range(x % 5)]
            return {"turn": data["noise"][source] * 2, "source_rows": source}


class Scorer(Rollout):
    def forward_step(self, data, iteration=0):
        with Watch.room.visit(f"{self.name}[{self.replica_id}]"):
            toys.EVENTS.append((self.name, iteration, list(self.batch.sample_ids)))
            self.log("noise", torch.rand(1, generator=self.generator).item())
            return {"score": data["noise"] + torch.rand(1, generator=self.generator)}


class Learner(BaseModule):
    """Its weights depend on each bit of what it gets, and on the order."""

    def setup(self):
        self.model = torch.nn.Linear(1, 1)

    def train_step(self, data, train_info):
        with torch.no_grad():
            for micro, ids in zip(data, train_info["sample_ids"], strict=True):
                toys.EVENTS.append(("trained", train_info["iteration"], ids))
                self.model.weight.mul_(0.9).add_(sum(micro[key].float().sum() for key in micro if key != "prompt"))
        toys.EVENTS.append(("weight", train_info["iteration"], self.model.weight.item()))


def engine_of(
    folder: Path,
    flow: Any,
    room: Room,
    *,
    threads: int,
    models: dict[str, Any] | None = None,
    isolate: bool = False,
    **runtime: Any,
) -> Engine:
    names = ("rollout", "reshaping", "scorer", "learner")
    sizes = {"num_episode": 1, "sample_per_episode": SAMPLES, "generation_batch_size": 4, "train_global_batch_size": 8}
    chatlearn.init(
        {
            **settings(folder, data_shuffle=False, **{**sizes, **runtime}),
            "models": {**{name: {} for name in names}, **(models or {})},
            "runtime_env": {"local_threads": threads, "isolate": isolate},
        }
    )
    Watch.room = room
    rollout, reshaping, scorer = Rollout("rollout"), Reshaping("reshaping"), Scorer("scorer")
    learner = Learner("learner")
    environment = Environment(lambda batch: flow(batch, rollout, reshaping, scorer))
    engine = Engine(environment, Trainer(lambda batch: learner.train_step(batch)))
    return engine.set_dataset(list(range(100)))


def filtering(batch: Any, rollout: Any, reshaping: Any, scorer: Any) -> Any:
    out = rollout.forward_step(batch)
    kept = reshaping.keep(out)
    return out, kept, scorer.forward_step(out, kept)


def expanding(batch: Any, rollout: Any, reshaping: Any, scorer: Any) -> Any:
    """Also filters, and what the numbers of the scorer's batches depend on is how many rows earlier ones have."""
    out = rollout.forward_step(batch)
    kept = reshaping.keep(out)
    turns = reshaping.turns(out, kept)
    return out, turns, scorer.forward_step(out, turns)


def returning(batch: Any, rollout: Any, reshaping: Any, scorer: Any) -> Any:
    """The first module is called again behind the step that drops rows."""
    out = rollout.forward_step(batch)
    kept = reshaping.keep(out)
    return kept, scorer.forward_step(out, kept), rollout.forward_step(batch, kept)


def test_rollouts_go_on_while_rows_are_counted(tmp_path: Path) -> None:
    """The replicas of the first stage meet, though each batch is counted before its later stages begin."""
    room = Room([{("rollout[0]", i), ("rollout[1]", i)} for i in range(3)])
    engine_of(tmp_path, filtering, room, threads=4, models={"rollout": {"num_replica": 2}}).learn()
    assert frozenset({"rollout[0]", "rollout[1]"}) in room.together


@pytest.mark.parametrize(("flow", "calls"), [(filtering, 1), (expanding, 2)])
def test_all_stages_of_a_flow_that_reshapes_are_under_way_together(flow: Any, calls: int, tmp_path: Path) -> None:
    """While the last stage has batch 0, the one that reshapes (``calls`` times a batch) has batch 1, the first 2."""
    room = Room([{("scorer[0]", 0), ("reshaping[0]", calls), ("rollout[0]", 2)}])
    engine_of(tmp_path, flow, room, threads=4).learn()
    stages = ("rollout[0]", "reshaping[0]", "scorer[0]")
    assert {frozenset(pair) for pair in itertools.combinations(stages, 2)} <= room.together


def record(folder: Path) -> dict[str, Any]:
    """What a run leaves behind that does not depend on the time that it took; calls in the order of their numbers."""
    samples = {path.name: path.read_text() for path in sorted((folder / "run" / "samples").iterdir())}
    metrics = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows(folder)]
    return {"events": sorted(toys.EVENTS, key=lambda event: event[:2]), "metrics": metrics, "samples": samples}


@pytest.mark.parametrize("flow", [filtering, expanding, returning])
@pytest.mark.parametrize("isolate", [False, True])
def test_numbers_and_bits_do_not_depend_on_who_is_done_first(flow: Any, isolate: bool, tmp_path: Path) -> None:
    records = []
    layouts = [(1, 1, None), (3, 1, 0), (1, 4, 1), (3, 4, 2), (3, 4, 3)]
    for number, (replicas, threads, delays) in enumerate(layouts):
        toys.EVENTS.clear()
        folder = tmp_path / str(number)
        engine = engine_of(
            folder,
            flow,
            Room(delays=None if delays is None else random.Random(delays)),
            threads=threads,
            isolate=isolate,
            models={
                "rollout": {"num_replica": replicas},
                "reshaping": {"num_replica": replicas, "generation_batch_size": 6},
                "scorer": {"num_replica": replicas, "generation_batch_size": 3},
            },
            num_episode=2,
            sample_per_episode=27,
            stream_data_loader_type="dynamic" if number % 2 else "fixed",
            log_samples="all",
        )
        engine.learn()
        engine.stop()
        records.append(record(folder))
    # numbers of batches: one after another, without gaps, in the order of the samples
    scored = [event for event in records[0]["events"] if event[0] == "scorer"]
    assert [event[1] for event in scored] == list(range(len(scored)))
    assert [i for event in scored for i in event[2]] == sorted(i for event in scored for i in event[2])
    assert all(other == records[0] for other in records)


class Told:
    """Which batches have failed, among threads; copies are the same."""

    def __init__(self) -> None:
        self.later = threading.Event()

    def __deepcopy__(self, memo: object) -> Told:
        return self


class FailingTwice(BaseModule):
    """Fails in two batches, in the later one first."""

    thread_safe = True

    def __init__(self, name, told):
        self.told = told

    @chatlearn.step(filters=True)
    def keep(self, data, iteration):
        if iteration == 1:
            self.told.later.set()
            raise ValueError("later")
        assert self.told.later.wait(60)
        raise ValueError("earlier")


def test_of_several_failures_that_of_the_first_batch_is_told(tmp_path: Path) -> None:
    chatlearn.init(
        {
            **settings(tmp_path, num_episode=1, sample_per_episode=8),
            "models": {"failing": {"num_replica": 2}},
            "runtime_env": {"local_threads": 3},
        }
    )
    failing = FailingTwice("failing", Told())
    engine = Engine(Environment(lambda batch: failing.keep(batch))).set_dataset([1, 2])
    with pytest.raises(chatlearn.StepError, match=r"(?s)earlier.*batch 0"):
        engine.learn()


@pytest.mark.parametrize(("replicas", "threads"), [(1, 1), (2, 3)])
def test_an_evaluation_that_reshapes_gives_results_in_the_order_of_the_data_set(
    replicas: int, threads: int, tmp_path: Path
) -> None:
    models = {"rollout": {"num_replica": replicas}, "reshaping": {"num_replica": replicas, "generation_batch_size": 2}}
    chatlearn.init(
        {
            **settings(tmp_path, generation_batch_size=4),
            "models": models,
            "runtime_env": {"local_threads": threads},
        }
    )
    Watch.room = Room(delays=random.Random(threads))
    rollout, reshaping = Rollout("rollout"), Reshaping("reshaping")

    def eval_flow(batch: Any) -> Any:
        out = rollout.eval_step(batch)
        return reshaping.keep(out), out

    results = EvalEngine(eval_flow).set_dataset(list(range(10))).eval().results
    assert [batch["x"].tolist() for batch in results] == [[1, 2], [4, 5, 7], [8]]
    assert [batch["kept"].tolist() for batch in results] == [[1, 2], [4, 5, 7], [8]]
