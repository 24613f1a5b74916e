"""Small modules and engines for the tests of single parts of an engine. Prompts are integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import toys

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer


class Source(BaseModule):
    """Prompts as numbers in ``x``."""

    def forward_step(self, data):
        return {**data, "x": torch.tensor(data["prompt"], dtype=torch.float32)}

    eval_step = forward_step


class Learner(BaseModule):
    """Its weight counts global batches, its loss is 5, 3, 1, 2, 4 by episode; records ("seen", id, x) per row."""

    def setup(self):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)

    def train_step(self, data, train_info):
        with torch.no_grad():
            self.model.weight += 1
        self.log("loss", [5.0, 3.0, 1.0, 2.0, 4.0][train_info["episode"]])
        for micro, ids in zip(data, train_info["sample_ids"], strict=True):
            toys.EVENTS.extend(("seen", *row) for row in zip(ids, micro["x"].tolist(), strict=True))


class Follower(Source):
    """Logs the weight that it got."""

    def setup(self):
        self.model = torch.nn.Linear(1, 1, bias=False)

    def after_episode(self):
        self.log("weight", self.model.weight.item())


class Recorder(BaseModule):
    """Records ("row", id, group, column -> value) for each row that it is given."""

    def train_step(self, data, train_info):
        for micro, ids, groups in zip(data, train_info["sample_ids"], train_info["group_ids"], strict=True):
            columns = {key: [float(v) for v in micro[key]] for key in micro}
            for row, (i, g) in enumerate(zip(ids, groups, strict=True)):
                toys.EVENTS.append(("row", i, g, {key: column[row] for key, column in columns.items()}))


def settings(folder: Path, **runtime: Any) -> dict[str, Any]:
    """Three episodes of four samples, under ``folder/run``."""
    sizes = {
        "num_episode": 3,
        "sample_per_episode": 4,
        "generation_batch_size": 2,
        "train_micro_batch_size": 2,
        "train_global_batch_size": 4,
        "exp_name": "run",
    }
    return toys.settings(folder, **{**sizes, **runtime})


def build(**parts: Any) -> tuple[Engine, Source, Learner]:
    """A source, a learner, and the engine over both."""
    source, learner = Source("source"), Learner("learner")
    environment = Environment(lambda batch: source.forward_step(batch))
    trainer = Trainer(lambda batch: learner.train_step(batch))
    return Engine(environment, trainer, **parts).set_dataset(list(range(10))), source, learner


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the metrics under ``folder/run``."""
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def trained(folder: Path, flow: Any, *, threads: int = 1, **sections: Any) -> list[tuple[int, int, dict[str, float]]]:
    """(sample id, group id, values) of each row that a run of one episode over the prompts 0 to 5 trains on."""
    config = settings(folder, num_episode=1, data_shuffle=False, sample_per_episode=6)
    sections = {name: {**section, "learner": {}} for name, section in sections.items()}
    chatlearn.init({**config, "runtime_env": {"local_threads": threads}, **sections})
    toys.EVENTS.clear()
    learner = Recorder("learner")
    engine = Engine(Environment(flow), Trainer(lambda batch: learner.train_step(batch))).set_dataset(list(range(10)))
    engine.learn()
    engine.stop()
    return [event[1:] for event in toys.events("row")]
