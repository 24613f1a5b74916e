"""Modules that are told to give up memory do so while they wait, and have it back when their phase comes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

import chatlearn
from chatlearn import BaseModule, Config, Engine, Environment, Evaluator, StepError, TorchModule, Trainer
from chatlearn.engine.check import check_offload
from chatlearn.engine.residency import Residency, offload_tags

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


# -- which modules, and in which order


class Moves:
    """Moves that take time: each is begun, and ends when it is waited for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, name: str, hook: str, tags: tuple[str, ...]) -> Any:
        self.seen.append(f"{hook} {name}")
        return lambda: self.seen.append(f"{hook} {name} has ended")


def residency(moves: Moves, config: dict[str, Any]) -> Residency:
    found = Config.model_validate(config)
    return Residency(found, {name: Heavy(name) for name in found.models}, moves)


def test_moves_of_several_modules_overlap_but_none_is_loaded_before_all_others_are_gone() -> None:
    moves = Moves()
    models = {name: {"free_memory": True} for name in "abcd"}
    memory = residency(moves, {"models": models})
    memory.occupy([])
    moves.seen.clear()
    memory.occupy(["a", "b"])
    assert moves.seen == ["onload a", "onload b", "onload a has ended", "onload b has ended"]
    moves.seen.clear()
    memory.occupy(["c", "d"])
    assert moves.seen == [
        *("offload a", "offload b", "offload a has ended", "offload b has ended"),
        *("onload c", "onload d", "onload c has ended", "onload d has ended"),
    ]


def test_what_is_loaded_already_is_not_moved_to_be_read() -> None:
    moves = Moves()
    memory = residency(moves, {"models": {name: {"free_memory": True} for name in "abc"}})
    memory.ensure(["a"])
    assert moves.seen == []
    memory.occupy(["b"])
    moves.seen.clear()
    memory.ensure(["b"])
    assert moves.seen == []
    assert [memory.given_up(name) for name in "abz"] == [("weights", "gradients", "optimizer"), (), ()]
    memory.ensure(["a"])
    assert moves.seen == ["offload b", "offload b has ended", "onload a", "onload a has ended"]


@pytest.mark.parametrize(
    ("backend", "model", "colocation", "tags"),
    [
        ("local", {"free_memory": True}, [], ("weights", "gradients", "optimizer")),
        ("ray", {"free_memory": True}, [], ()),
        ("ray", {"free_memory": True}, ["b,c"], ()),
        ("ray", {"free_memory": True}, ["a,unused"], ()),
        ("ray", {"free_memory": True}, ["b,unused", "a,c"], ("weights", "gradients", "optimizer")),
        ("ray", {"force_free_memory": True}, [], ("weights", "gradients", "optimizer")),
        ("ray", {"free_memory": True, "offload_weights": True}, [], ("weights",)),
    ],
)
def test_free_memory_counts_where_a_module_shares_its_devices(
    backend: str, model: dict[str, Any], colocation: list[str], tags: tuple[str, ...]
) -> None:
    config = Config.model_validate(
        {
            "runtime_env": {"backend": backend},
            "models": {"a": model, "b": {}, "c": {}, "unused": {}},
            "runtime": {"colocation": colocation},
        }
    )
    modules: dict[str, BaseModule] = {name: Heavy(name) for name in "abc"}
    assert offload_tags(config, "a", modules) == tags
    notes = check_offload(config, modules)
    shown = "models.a.free_memory has no effect, since a shares its devices with no other model of the run."
    assert [note.startswith(shown) for note in notes] == ([] if tags else [True])
