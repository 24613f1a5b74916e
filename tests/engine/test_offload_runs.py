"""Runs whose models give up their memory phase by phase give what runs without that give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import features, network

import chatlearn
from chatlearn import Engine, Environment, Evaluator, ModuleError, TorchModule, Trainer


class Policy(TorchModule):
    """Answers with a number for each prompt."""

    def setup(self) -> None:
        self.model = network()

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            action = self.model(features(data["prompt"])) + self.uniforms(self.batch.sample_ids, 1)
        return {**data, "action": action}

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.log("sum", self.model(features(data["prompt"])).detach().sum())
        return data


class Frozen(Policy):
    """Takes part, and is trained by nobody."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "reward": -(data["action"] - self.model(features(data["prompt"])).detach()).abs()}

    @chatlearn.step
    def ask(self, data: dict[str, Any], *, policy: Any) -> dict[str, Any]:
        """What another module makes of the data, scored."""
        return self.forward_step(policy.forward_step(data))


class Learner(Policy):
    """Follows the reward with Adam; its gradients add up over two global batches."""

    def setup(self) -> None:
        super().setup()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        for batch in data:
            loss = ((self.model(features(batch["prompt"])) - batch["action"]) ** 2 * batch["reward"].exp()).sum()
            loss.backward()
            self.log("loss", loss)
        if train_info["iteration"] % 2:
            self.optimizer.step()
            self.optimizer.zero_grad()


class Drawn(Learner):
    """Trains on what comes without a reward."""

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        super().train_step([{**batch, "reward": torch.zeros(len(batch["action"]), 1)} for batch in data], train_info)


def build(folder: Path, free: bool, **runtime: Any) -> tuple[Engine, Policy, Frozen]:
    models = {name: {"free_memory": free} for name in ("policy", "frozen", "learner")}
    base = {"num_episode": 3, "sample_per_episode": 4, "train_micro_batch_size": 2, "train_global_batch_size": 4}
    more = {"save_episode_interval": 1, "eval_episode_interval": 1, "export": ["learner"], "output_dir": str(folder)}
    chatlearn.init({"runtime": {**base, **more, **runtime}, "models": models})
    policy, frozen, learner = Policy("policy"), Frozen("frozen"), Learner("learner")
    environment = Environment(lambda batch: frozen.forward_step(policy.forward_step(batch)))
    engine = Engine(environment, Trainer(lambda batch: learner.train_step(batch))).set_dataset(list(range(10)))
    engine.set_evaluator(Evaluator(lambda batch: policy.eval_step(batch)).set_dataset([1, 2, 3]))
    return engine.set_parameter_sync(learner, policy), policy, frozen


def record(engine: Engine) -> list[dict[str, Any]]:
    rows = map(json.loads, (engine.run.path / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "time/" not in key and key != "seconds"} for row in rows]


def test_a_run_that_gives_up_memory_is_the_run_that_does_not(tmp_path: Path) -> None:
    runs = {}
    for free in (False, True):
        engine, policy, frozen = build(tmp_path / str(free), free)
        engine.learn()
        weights = load_file(engine.run.path / "policy" / "model.safetensors")
        answer = engine.call(policy.forward_step, {"prompt": [5, 6]})
        assert answer is not None
        asked = engine.call(frozen.ask, {"prompt": [5, 6]}, policy=policy)
        assert asked is not None
        numbers = torch.stack([answer["action"], asked["reward"]])
        runs[free] = record(engine), weights, numbers, engine.evaluate().metrics
        saved = engine.run.path / "checkpoints" / "episode-000003"
        assert not any("frozen" in file.name for file in saved.iterdir() if file.is_file())
    (plain, *_), (freed, *_) = runs[False], runs[True]
    assert len(plain) == 3
    assert freed == plain
    assert all(torch.equal(runs[True][1][name], value) for name, value in runs[False][1].items())
    assert torch.equal(runs[True][2], runs[False][2])
    assert runs[True][3] == runs[False][3]


def test_a_run_that_gives_up_memory_is_resumed_to_the_bit(tmp_path: Path) -> None:
    whole, *_ = build(tmp_path / "whole", free=True)
    whole.learn()
    half, *_ = build(tmp_path / "half", free=True, num_episode=2)
    half.learn()
    checkpoint = str(half.run.path / "checkpoints" / "episode-000002")
    resumed, *_ = build(tmp_path / "half", free=True, resume=checkpoint)
    resumed.learn()
    assert record(resumed) == record(whole)


def test_a_run_may_begin_after_an_evaluation_that_sent_its_modules_away(tmp_path: Path) -> None:
    engine, policy, _ = build(tmp_path / "a", free=True)
    engine.evaluate()
    engine.call(policy.forward_step, {"prompt": [1]})
    engine.learn()
    plain, *_ = build(tmp_path / "b", free=False)
    plain.learn()
    assert record(engine) == record(plain)


def test_a_hook_that_uses_an_offloaded_model_is_told_so(tmp_path: Path) -> None:
    class Asking(Policy):
        def before_episode(self) -> None:
            self.model(torch.ones(1, 3))

    settings = {"num_episode": 2, "sample_per_episode": 2, "train_micro_batch_size": 2, "output_dir": str(tmp_path)}
    chatlearn.init({"runtime": settings, "models": {"policy": {"free_memory": True}, "learner": {}}})
    policy, learner = Asking("policy"), Drawn("learner")
    environment = Environment(lambda batch: policy.forward_step(batch))
    engine = Engine(environment, Trainer(lambda batch: learner.train_step(batch))).set_dataset([1, 2])
    with pytest.raises(ModuleError, match=r"^policy: its model is called while its weights are in host memory"):
        engine.learn()
