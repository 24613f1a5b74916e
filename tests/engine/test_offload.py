"""Modules that are told to give up memory do so while they wait, and have it back when their phase comes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Evaluator, StepError, TorchModule, Trainer

EVENTS: list[tuple[Any, ...]] = []


class Heavy(TorchModule):
    """Records when it is moved, and that it is loaded whenever it works."""

    def setup(self) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.resident = True

    def offload(self, tags: Collection[str]) -> None:
        assert self.resident
        self.resident = False
        EVENTS.append(("offload", self.name, tuple(tags), self.replica_id))

    def onload(self, tags: Collection[str]) -> None:
        assert not self.resident
        self.resident = True
        EVENTS.append(("onload", self.name, tuple(tags), self.replica_id))

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        assert self.resident
        EVENTS.append(("forward", self.name))
        return data

    eval_step = forward_step

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        assert self.resident
        EVENTS.append(("train", self.name))

    def state_dict(self) -> dict[str, Any]:
        assert self.resident or not EVENTS
        EVENTS.append(("state", self.name))
        return super().state_dict()

    def export(self, path: str) -> None:
        assert self.resident
        EVENTS.append(("export", self.name))


@pytest.fixture(autouse=True)
def _empty() -> None:
    EVENTS.clear()


def build(folder: Path, models: dict[str, Any], **runtime: Any) -> tuple[Engine, Heavy]:
    base = {
        "num_episode": 2,
        "sample_per_episode": 2,
        "train_micro_batch_size": 2,
        "output_dir": str(folder),
    }
    sections: dict[str, Any] = {name: {} for name in ("policy", "reward", "learner")}
    chatlearn.init({"runtime": {**base, **runtime}, "models": {**sections, **models}})
    policy, reward, learner = Heavy("policy"), Heavy("reward"), Heavy("learner")
    environment = Environment(lambda batch: reward.forward_step(policy.forward_step(batch)))
    engine = Engine(environment, Trainer(lambda batch: learner.train_step(batch))).set_dataset([1, 2])
    return engine.set_parameter_sync(learner, policy), policy


def moves() -> list[str]:
    """What happened, replica 0 only, in short."""
    kept = [event for event in EVENTS if event[0] != "state" and (len(event) < 4 or event[3] == 0)]
    return [f"{event[0]} {event[1]}" for event in kept]


def test_modules_take_turns_phase_by_phase(tmp_path: Path) -> None:
    models = {"policy": {"free_memory": True}, "learner": {"free_memory": True}}
    engine, _ = build(tmp_path, models)
    engine.learn()
    episode = [
        "offload learner",
        "forward policy",
        "forward reward",
        "offload policy",
        "onload learner",
        "train learner",
        "onload policy",  # the sync needs both
    ]
    assert moves() == episode * 2
    assert {event[2] for event in EVENTS if event[0] == "offload"} == {("weights", "gradients", "optimizer")}


def test_every_replica_is_moved_and_only_what_is_asked_for(tmp_path: Path) -> None:
    models = {"policy": {"num_replica": 2, "offload_weights": True}, "learner": {"offload_optimizer_states": True}}
    engine, _ = build(tmp_path, models, num_episode=1)
    engine.learn()
    moved = [event for event in EVENTS if event[0] in ("offload", "onload")]
    assert moved == [
        ("offload", "learner", ("optimizer",), 0),
        ("offload", "policy", ("weights",), 0),
        ("offload", "policy", ("weights",), 1),
        ("onload", "learner", ("optimizer",), 0),
        ("onload", "policy", ("weights",), 0),
        ("onload", "policy", ("weights",), 1),
    ]


def test_modules_are_loaded_to_be_saved_exported_measured_and_called(tmp_path: Path) -> None:
    models = {name: {"free_memory": True} for name in ("policy", "reward", "learner")}
    engine, policy = build(
        tmp_path, models, num_episode=1, save_episode_interval=1, export=["policy"], eval_episode_interval=1
    )
    engine.set_evaluator(Evaluator(lambda batch: policy.eval_step(batch)).set_dataset([1]))
    engine.learn()
    assert "export policy" in moves()
    assert moves().count("forward policy") == 2
    engine.evaluate()
    engine.call(policy.forward_step, {"prompt": [1]})
    assert moves().count("forward policy") == 4


def test_overlapping_phases_hold_both_sides(tmp_path: Path) -> None:
    models = {name: {"free_memory": True} for name in ("policy", "learner")}
    engine, _ = build(tmp_path, models, stream_data_loader_type="dynamic")
    engine.learn()
    assert not any(event[0] in ("offload", "onload") for event in EVENTS)


def test_a_module_without_hooks_keeps_its_memory_and_the_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Rule(BaseModule):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            return data

    chatlearn.init(
        {"runtime": {"num_episode": 1, "output_dir": str(tmp_path)}, "models": {"rule": {"free_memory": True}}}
    )
    rule = Rule("rule")
    Engine(Environment(lambda batch: rule.forward_step(batch))).set_dataset([1, 2]).learn()
    assert "models.rule is to give up weights, gradients, optimizer while it waits, but Rule has no offload(tags)" in (
        " ".join(capsys.readouterr().out.split())
    )


def test_a_hook_that_raises_is_named(tmp_path: Path) -> None:
    class Stuck(Heavy):
        def offload(self, tags: Collection[str]) -> None:
            raise RuntimeError("no host memory")

    chatlearn.init({"runtime": {"output_dir": str(tmp_path)}, "models": {"a": {}, "b": {"free_memory": True}}})
    first, second = Heavy("a"), Stuck("b")
    engine = Engine(
        Environment(lambda batch: first.forward_step(batch)), Trainer(lambda batch: second.train_step(batch))
    )
    with pytest.raises(StepError, match=r"RuntimeError: no host memory\n.*raised in b\[0\]\.offload"):
        engine.set_dataset([1, 2]).learn()


def test_a_torch_module_moves_model_and_optimizer_and_drops_gradients() -> None:
    module = TorchModule("trainer")
    module.model = torch.nn.Linear(3, 2)
    module.optimizer = torch.optim.Adam(module.model.parameters())
    module.model(torch.ones(1, 3)).sum().backward()
    module.optimizer.step()
    state = module.optimizer.state[module.model.weight]
    before = {key: value.clone() for key, value in state.items()}
    weight = module.model.weight.detach().clone()
    module.__dict__["_context"].device = torch.device("meta")  # a device that keeps no values: what arrives was moved
    module.onload(["optimizer"])
    assert module.optimizer.state[module.model.weight]["exp_avg"].is_meta
    assert not module.optimizer.state[module.model.weight]["step"].is_meta
    assert not module.model.weight.is_meta
    assert torch.equal(module.model.weight, weight)
    module.offload(["gradients"])
    assert module.model.weight.grad is None
    module.onload(["weights"])
    assert module.model.weight.is_meta
    assert set(before) == {"step", "exp_avg", "exp_avg_sq"}


def test_what_is_offloaded_and_loaded_again_is_the_same_to_the_bit() -> None:
    module = TorchModule("trainer")
    module.model = torch.nn.Linear(3, 2)
    module.optimizer = torch.optim.Adam(module.model.parameters())
    module.model(torch.ones(1, 3)).sum().backward()
    module.optimizer.step()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    moments = module.optimizer.state[module.model.weight]["exp_avg"].clone()
    tags = ("weights", "gradients", "optimizer")
    module.offload(tags)
    module.onload(tags)
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert torch.equal(module.optimizer.state[module.model.weight]["exp_avg"], moments)
    module.model(torch.ones(1, 3)).sum().backward()
    module.optimizer.step()
    assert not torch.equal(module.model.weight, before["weight"])
