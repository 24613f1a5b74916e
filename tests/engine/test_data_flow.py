"""Where data go: prompts are fetched ahead of what is made of them, and payloads do not pass through the driver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from engine_cases import Learner, settings

import chatlearn
from chatlearn import BaseModule, DataError, Engine, Environment, EvalEngine, Trainer
from chatlearn.engine.prompts import ahead
from chatlearn.runtime.local import LocalCluster

# -- fetched ahead ----------------------------------------


def test_items_are_taken_ahead_and_come_in_their_order() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    seen = [(item, len(taken)) for item in ahead(items(), 2)]
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 6), (4, 6), (5, 6)]
    taken.clear()
    assert [(item, len(taken)) for item in ahead(items(), 0)] == [(item, item + 1) for item in range(6)]


@pytest.mark.parametrize("num", [0, 1, 5])
def test_an_error_is_raised_when_its_turn_comes(num: int) -> None:
    def items() -> Iterator[int]:
        yield from (0, 1, 2)
        raise DataError("the fourth is broken")

    coming = ahead(items(), num)
    assert [next(coming) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="the fourth"):
        next(coming)


class Log:
    """Prompts that were read, among threads; copies are the same."""

    def __init__(self, enough: int) -> None:
        self.read: list[int] = []
        self.enough, self.is_enough = enough, threading.Event()

    def __deepcopy__(self, memo: object) -> Log:
        return self


class Prompts:
    def __init__(self, prompts: list[int], log: Log) -> None:
        self.prompts, self.log = prompts, log

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, int]:
        if self.prompts[index] < 0:
            raise ValueError("no prompt")
        self.log.read.append(index)
        if len(self.log.read) == self.log.enough:
            self.log.is_enough.set()
        return {"prompt": self.prompts[index]}


class Reader(BaseModule):
    """Its first step waits until so many prompts have been read; each notes how many there are when it ends."""

    thread_safe = True

    def __init__(self, name: str, log: Log) -> None:
        self.log_of_prompts = log

    def build_dataset(self, prompts: Any) -> Prompts:
        return Prompts(list(prompts), self.log_of_prompts)

    def forward_step(self, data, iteration=0):
        if iteration == 0:
            assert self.log_of_prompts.is_enough.wait(60), self.log_of_prompts.read
        toys.EVENTS.append(("step", iteration, len(self.log_of_prompts.read)))
        return {"x": torch.as_tensor(data["prompt"], dtype=torch.float32)}

    def eval_step(self, data):
        first = int(data["prompt"][0]) // 2
        return self.forward_step(data, first)

    def train_step(self, data, train_info):
        self.forward_step(data[0], train_info["iteration"])


def reading(folder: Path, threads: int, kind: str, prompts: list[int], log: Log, **runtime: Any) -> Any:
    """Two prompts a batch; one replica, so that with threads two batches may be in flight."""
    sizes = {"generation_batch_size": 2, "train_global_batch_size": 2}
    config = settings(folder, num_episode=1, sample_per_episode=len(prompts), data_shuffle=False, **sizes, **runtime)
    chatlearn.init({**config, "runtime_env": {"local_threads": threads}})
    reader = Reader("reader", log)
    if kind == "evaluator":
        return EvalEngine(lambda batch: reader.eval_step(batch)).set_dataset(prompts).eval()
    if kind == "environment":
        return Engine(Environment(lambda batch: reader.forward_step(batch))).set_dataset(prompts).learn()
    return Engine(None, Trainer(lambda batch: reader.train_step(batch))).set_dataset(prompts).learn()


@pytest.mark.parametrize("kind", ["environment", "evaluator"])
def test_two_windows_of_prompts_are_read_while_the_first_batch_is_under_way(kind: str, tmp_path: Path) -> None:
    """One window of batches is in flight, one fetched, and no more."""
    reading(tmp_path, 3, kind, list(range(20)), Log(enough=8))
    assert toys.events("step")[0] == ("step", 0, 8)
    assert sorted(event[1] for event in toys.events("step")) == list(range(10))


def test_training_straight_from_the_data_set_fetches_a_window_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no batch has to wait for the training on an earlier one before it is fetched."""
    submitted: list[str] = []
    call = LocalCluster.call

    def noted(self: LocalCluster, handle: Any, method: str, *args: Any) -> Any:
        submitted.append(method)
        return call(self, handle, method, *args)

    monkeypatch.setattr(LocalCluster, "call", noted)
    reading(tmp_path, 3, "trainer", list(range(10)), Log(enough=6), stream_data_loader_type="dynamic")
    order = [method for method in submitted if method in ("fetch", "run")]
    window = 2  # of one replica
    assert order == ["fetch"] * window + ["fetch", "run"] * 3 + ["run"] * window


@pytest.mark.parametrize("kind", ["environment", "evaluator"])
def test_where_nothing_overlaps_prompts_are_read_when_they_are_needed(kind: str, tmp_path: Path) -> None:
    reading(tmp_path, 1, kind, list(range(8)), Log(enough=2))
    assert toys.events("step") == [("step", i, 2 * i + 2) for i in range(4)]


def test_a_prompt_that_can_not_be_read_is_told_when_the_batches_before_it_are_under_way(tmp_path: Path) -> None:
    log = Log(enough=6)
    with pytest.raises(DataError, match="no prompt"):
        reading(tmp_path, 3, "environment", [0, 1, 2, 3, 4, 5, -1, 7, 8, 9], log)
    assert {0, 1} <= {event[1] for event in toys.events("step")}, "batch 3 has its turn once batch 1 has come out"


# -- payloads ----------------------------------------


class Wide(BaseModule):
    """Makes a payload of 100 kB a row."""

    def forward_step(self, data):
        x = torch.tensor(data["prompt"], dtype=torch.float32)
        return {"x": x, "wide": x[:, None].expand(-1, 25_000).contiguous()}


class Judge(BaseModule):
    @chatlearn.step(filters=True)
    def keep(self, data):
        kept = [row for row, x in enumerate(data["x"].tolist()) if x % 3]
        return {"score": data["wide"][kept].mean(1), "source_rows": kept}


def holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_tensors, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_tensors, value))
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("limit", [16, "all"])
@pytest.mark.parametrize("threads", [1, 3])
def test_no_payload_comes_to_the_driver_and_none_is_moved_to_be_put_together(
    limit: Any, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of batches are joined, rows of a filter are taken, samples are written."""
    got: list[Any] = []
    methods: dict[str, list[str]] = {}
    get, call = LocalCluster.get, LocalCluster.call

    def getting(self: LocalCluster, future: Any) -> Any:
        got.append(get(self, future))
        return got[-1]

    def calling(self: LocalCluster, handle: Any, method: str, *args: Any) -> Any:
        methods.setdefault(method, []).append(str(handle))
        return call(self, handle, method, *args)

    monkeypatch.setattr(LocalCluster, "get", getting)
    monkeypatch.setattr(LocalCluster, "call", calling)
    models = {"wide": {"num_replica": 2, "generation_batch_size": 2}, "judge": {"generation_batch_size": 4}}
    config = settings(tmp_path, num_episode=1, sample_per_episode=24, data_shuffle=False, log_samples=limit)
    chatlearn.init({**config, "models": {**models, "learner": {}}, "runtime_env": {"local_threads": threads}})
    wide, judge, learner = Wide("wide"), Judge("judge"), Learner("learner")

    def env_flow(batch: Any) -> Any:
        out = wide.forward_step(batch)
        return out, judge.keep(out)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: learner.train_step(batch)))
    engine.set_dataset(list(range(24))).learn()
    assert got
    assert not any(map(holds_tensors, got))
    assert "gather" not in methods
    assert {replica.split("[")[0] for replica in methods["lines"]} == {"wide"}, "made where the rows were"

    lines = (tmp_path / "run" / "samples" / "episode-000001.jsonl").read_text().splitlines()
    kept = [x for x in range(24) if x % 3]
    found = [json.loads(line) for line in lines]
    assert [(line["sample_id"], line["x"], line["score"]) for line in found] == [(x, x, x) for x in kept]
    assert {line["wide"] for line in found} == {"torch.float32 [25000]"}
    assert [event[1:] for event in toys.events("seen")] == [(x, float(x)) for x in kept]
