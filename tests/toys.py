"""Tiny deterministic modules that tests wire into engines, and the record of what happened to them.

Prompts are integers. A policy acts on three features of its prompt, a rule rewards it, a trainer fits the same little
network, so that everything an engine moves (noise, weights, optimizer state, counters) shows up in the metrics.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import chatlearn
import chatlearn.engine.run
from chatlearn import BaseModule, Engine, Environment, Evaluator, Trainer

EVENTS: list[tuple[Any, ...]] = []
"""What modules and hooks did, in order; emptied before each test."""

INTERRUPT: dict[str, int] = {}
"""Module name -> iteration at which its step raises KeyboardInterrupt, as Ctrl-C would."""


def features(prompts: list[int]) -> torch.Tensor:
    return torch.tensor([[math.sin(p), math.cos(p), 1.0] for p in prompts])


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


class Toy(BaseModule):
    """Records its calls."""

    def note(self, what: str, *details: Any) -> None:
        EVENTS.append((f"{self.name}.{what}", *details))
        if details and INTERRUPT.get(self.name) == details[0]:
            raise KeyboardInterrupt

    @chatlearn.step
    def weights(self, data: dict[str, Any]) -> dict[str, Any]:
        """All weights of the model in one row, for comparisons bit by bit."""
        return {"weights": torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])[None]}


class Policy(Toy):
    """Acts with noise from both sources that a module may use: the sample's own, and the global generator."""

    def setup(self) -> None:
        self.model = network()

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        self.note("forward_step", iteration, self.replica_id, list(self.batch.sample_ids))
        with torch.no_grad():
            mean = self.model(features(data["prompt"]))[:, 0]
        noise = self.uniforms(self.batch.sample_ids, 1)[:, 0] + 0.1 * torch.rand(len(mean)) - 0.5
        self.log("action", (mean + noise).mean())
        return {"prompt": data["prompt"], "action": mean + noise}

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.note("eval_step", list(self.batch.sample_ids))
        with torch.no_grad():
            return {"prompt": data["prompt"], "action": self.model(features(data["prompt"]))[:, 0]}

    def export(self, path: str) -> None:
        Path(path).mkdir()
        (Path(path) / "weights.txt").write_text(repr(self.weights({})["weights"].tolist()))


class Reward(Toy):
    """The closer an action is to a function of the prompt, the better."""

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        self.note("forward_step", iteration, self.replica_id, list(self.batch.sample_ids))
        target = torch.tensor([math.sin(p / 2) for p in data["prompt"]])
        rewards = -((data["action"] - target) ** 2)
        self.log("reward", rewards.mean())
        return {**data, "target": target, "rewards": rewards}

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.note("eval_step", list(self.batch.sample_ids))
        target = torch.tensor([math.sin(p / 2) for p in data["prompt"]])
        self.log("reward", -((data["action"] - target) ** 2).mean())
        return {"prompt": data["prompt"], "action": data["action"]}


class Learner(Toy):
    """Trains the policy's network; its loss, its noise and its optimizer's state all depend on the order of events."""

    def setup(self) -> None:
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.95)

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        self.note("train_step", train_info["iteration"], train_info, [len(part["prompt"]) for part in data])
        rows = sum(len(part["prompt"]) for part in data)
        self.optimizer.zero_grad()
        total = 0.0
        for part in data:
            inputs = features(part["prompt"])
            wanted = part["target"] if "target" in part else torch.zeros(len(inputs))
            error = self.model(inputs + 0.01 * torch.randn(inputs.shape))[:, 0] - wanted
            loss = (error**2).sum() / rows
            loss.backward()
            total += float(loss.detach())
        self.optimizer.step()
        self.scheduler.step()
        self.log("loss", total)


class Hooked(Policy):
    """Also records its life cycle."""

    def before_episode(self) -> None:
        EVENTS.append((f"{self.name}.before_episode", self.replica_id))

    def after_episode(self) -> None:
        EVENTS.append((f"{self.name}.after_episode", self.replica_id))


def make_engine(policy_class: type[Policy] = Policy, evaluate: bool = True, prompts: int = 50) -> Engine:
    """Policy and reward make experience, a learner trains and hands its weights back, an evaluator measures."""
    policy, reward, learner = policy_class("policy"), Reward("reward"), Learner("learner")

    def env_flow(batch: Any) -> Any:
        return reward.forward_step(policy.forward_step(batch))

    def trainer_flow(batch: Any) -> None:
        learner.train_step(batch)

    def eval_flow(batch: Any) -> Any:
        return reward.eval_step(policy.eval_step(batch))

    evaluator = Evaluator(eval_flow).set_dataset(range(100, 110)) if evaluate else None
    engine = Engine(Environment(env_flow), Trainer(trainer_flow), evaluator)
    return engine.set_parameter_sync(learner, policy).set_dataset(range(prompts))


def settings(folder: Path, **runtime: Any) -> dict[str, Any]:
    """A small configuration that writes under ``folder``."""
    defaults = {
        "num_episode": 2,
        "sample_per_episode": 20,
        "generation_batch_size": 8,
        "train_micro_batch_size": 4,
        "train_global_batch_size": 8,
        "output_dir": str(folder),
        "exp_name": "toy",
    }
    return {"runtime": {**defaults, **runtime}}


@contextmanager
def quick_runs() -> Iterator[None]:
    """Leaves out what takes longer than a toy's whole run: the picture, and the sweep of the heap before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatlearn.engine.run, "draw_learning_curve", lambda *args: None)
        patch.setattr(gc, "collect", lambda *args: 0)
        yield


def module_of(engine: Engine, name: str) -> Any:
    """A module of the engine's flows."""
    return engine._modules[name]


def weights_of(engine: Engine, name: str) -> torch.Tensor:
    """The weights of a module's replica 0, as one vector."""
    return engine.call(module_of(engine, name).weights, {"prompt": [0]})["weights"][0]


def events(start: str = "") -> list[tuple[Any, ...]]:
    """The recorded events whose names begin with ``start``."""
    return [event for event in EVENTS if event[0].startswith(start)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl`` without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
