"""What an engine calls, in which order, for every combination of environment, trainer and evaluator."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import toys
from toys import EVENTS

import chatlearn
from chatlearn import BaseModule, Engine, EngineError, Environment, Evaluator, RLHFEngine, Trainer
from chatlearn.engine.run import Run
from chatlearn.sync.sync import ParameterSync


class Saving(toys.Hooked):
    """Records its checkpoints too."""

    def save_checkpoint(self, iteration: int) -> None:
        EVENTS.append((f"{self.name}.save_checkpoint", iteration))

    def load_checkpoint(self, iteration: int) -> None:
        EVENTS.append((f"{self.name}.load_checkpoint", iteration))


def _recorded(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, label: str) -> None:
    original = getattr(cls, method)

    def recording(self: Any, *args: Any) -> Any:
        EVENTS.append((label,))
        return original(self, *args)

    monkeypatch.setattr(cls, method, recording)


def test_order_of_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _recorded(monkeypatch, ParameterSync, "begin", "sync")
    _recorded(monkeypatch, Run, "log", "log")
    chatlearn.init(toys.settings(tmp_path, sample_per_episode=8, eval_episode_interval=1, save_episode_interval=1))
    toys.make_engine(Saving).learn()
    episode = [
        "policy.before_episode",
        "policy.forward_step",
        "reward.forward_step",
        "learner.train_step",
        "sync",
        "policy.after_episode",
        "policy.eval_step",
        "reward.eval_step",
        "policy.eval_step",
        "reward.eval_step",
        "log",
        "policy.save_checkpoint",
    ]
    assert [event[0] for event in EVENTS] == ["sync", *episode, *episode]


def test_intervals_of_evaluation_and_checkpoints_count_episodes(tmp_path: Path) -> None:
    chatlearn.init(
        toys.settings(tmp_path, num_episode=7, sample_per_episode=4, eval_episode_interval=3, save_episode_interval=2)
    )
    toys.make_engine(Saving).learn()
    rows = toys.rows_of(tmp_path / "toy")
    assert [row["episode"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["episode"] for row in rows if "eval/reward/reward" in row] == [3, 6]
    assert [event[1] for event in toys.events("policy.save_checkpoint")] == [2, 4, 6]


def test_hooks_run_on_every_replica(tmp_path: Path) -> None:
    config = toys.settings(tmp_path, num_episode=1)
    config["models"] = {"policy": {"num_replica": 3}, "reward": {}, "learner": {}}
    chatlearn.init(config)
    toys.make_engine(toys.Hooked, evaluate=False).learn()
    assert toys.events("policy.before_episode") == [("policy.before_episode", i) for i in range(3)]
    assert toys.events("policy.after_episode") == [("policy.after_episode", i) for i in range(3)]


def _parts() -> dict[str, Any]:
    engine = toys.make_engine()
    return {"environment": engine.environment, "trainer": engine.trainer, "evaluator": engine.evaluator}


_PARTS = ("environment", "trainer", "evaluator")
_COMBINATIONS = [set(parts) for count in (1, 2, 3) for parts in itertools.combinations(_PARTS, count)]


@pytest.mark.parametrize("present", _COMBINATIONS, ids=lambda parts: "+".join(sorted(parts)))
def test_any_part_may_be_missing(present: set[str], tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, eval_episode_interval=1))
    parts = {name: part if name in present else None for name, part in _parts().items()}
    engine = Engine(parts["environment"], parts["trainer"], parts["evaluator"]).set_dataset(range(30))
    evaluation = engine.learn()

    assert bool(toys.events("policy.forward_step")) == ("environment" in present)
    assert bool(toys.events("policy.eval_step")) == ("evaluator" in present)
    trained = [i for event in toys.events("learner.train_step") for part in event[2]["sample_ids"] for i in part]
    assert trained == (list(range(40)) if "trainer" in present else [])
    assert (evaluation is not None) == ("evaluator" in present)
    # an engine that only measures does so once
    episodes = 1 if present == {"evaluator"} else 2
    assert [row["episode"] for row in toys.rows_of(tmp_path / "toy")] == list(range(1, episodes + 1))


@pytest.mark.parametrize("setters", [False, True])
def test_an_engine_without_any_part_is_refused(setters: bool, tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine() if setters else Engine(None, None, None)
    engine.set_environment(None).set_trainer(None).set_evaluator(None)
    with pytest.raises(EngineError, match="no environment, no trainer and no evaluator"):
        engine.learn()
    assert list(tmp_path.iterdir()) == []


def test_the_data_set_feeds_the_trainer_in_global_batches(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, sample_per_episode=20))
    learner = toys.Learner("learner")
    Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset(range(7)).learn()
    assert [event[3] for event in toys.events("learner.train_step")] == [[4, 4], [4, 4], [4]] * 2


class Speaker(BaseModule):
    """Says its name under a key of its own and under a shared one, and records what it was given."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        EVENTS.append((f"{self.name}.forward_step", {key: data[key][0] for key in data}))
        rows = len(next(iter(data.values())))
        return {self.name: [self.name] * rows, "last": [self.name] * rows}

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        EVENTS.append((f"{self.name}.train_step", {key: data[0][key][0] for key in data[0]}))


def test_rlhf_engine_wires_six_models(tmp_path: Path) -> None:
    """The flow and the order in which outputs are merged, written out by hand from the issue's program."""
    chatlearn.init(toys.settings(tmp_path, num_episode=1, sample_per_episode=4))
    names = ["policy", "reference", "reward", "value", "ppo_policy", "ppo_value"]
    engine = RLHFEngine(*(Speaker(name) for name in names)).set_dataset(["hello"])
    engine.learn()
    from_policy = {"policy": "policy", "last": "policy"}
    experience = {"value": "value", "reward": "reward", "last": "reward"}
    assert [
        ("policy.forward_step", {"prompt": "hello"}),
        ("reference.forward_step", from_policy),
        ("value.forward_step", from_policy),
        ("reward.forward_step", {"policy": "policy", "reference": "reference", "value": "value", "last": "value"}),
        ("ppo_policy.train_step", experience),
        ("ppo_value.train_step", experience),
    ] == EVENTS


def test_rlhf_engine_syncs_both_trained_models(tmp_path: Path) -> None:
    class Six(toys.Learner):
        forward_step = toys.Reward.forward_step

    class SixPolicy(toys.Policy):
        pass

    chatlearn.init(toys.settings(tmp_path, num_episode=1))
    policy = SixPolicy("policy")
    others = [Six(name) for name in ("reference", "reward", "value", "ppo_policy", "ppo_value")]
    engine = RLHFEngine(policy, *others).set_dataset(range(10))
    engine.learn()
    weights = {name: toys.weights_of(engine, name) for name in ("policy", "value", "ppo_policy", "ppo_value")}
    assert weights["policy"].equal(weights["ppo_policy"])
    assert weights["value"].equal(weights["ppo_value"])
    assert not weights["policy"].equal(weights["value"])


def test_the_first_sync_comes_before_the_first_episode(tmp_path: Path) -> None:
    class Seen(toys.Policy):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            EVENTS.append(("seen", self.weights({})["weights"][0]))
            return super().forward_step(data, iteration)

    class Announced(toys.Learner):
        def setup(self) -> None:
            super().setup()
            EVENTS.append(("made", self.weights({})["weights"][0]))

    chatlearn.init(toys.settings(tmp_path, num_episode=1))
    policy, reward, learner = Seen("policy"), toys.Reward("reward"), Announced("learner")
    engine = Engine(
        Environment(lambda batch: reward.forward_step(policy.forward_step(batch))),
        Trainer(lambda batch: learner.train_step(batch)),
    )
    engine.set_parameter_sync(learner, policy).set_dataset(range(10)).learn()
    assert toys.events("seen")[0][1].equal(toys.events("made")[0][1])


def test_weight_versions_travel_with_samples(tmp_path: Path) -> None:
    class Versions(toys.Policy):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            EVENTS.append(("version", self.batch.weight_version))
            return super().forward_step(data, iteration)

    chatlearn.init(toys.settings(tmp_path, num_episode=3, sample_per_episode=8))
    toys.make_engine(Versions).learn()
    assert toys.events("version") == [("version", 1), ("version", 2), ("version", 3)]


def test_calling_a_step_uses_trained_weights(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine()
    before = toys.weights_of(engine, "policy")
    engine.learn()
    after = toys.weights_of(engine, "policy")
    assert not before.equal(after)
    assert after.equal(toys.weights_of(engine, "learner"))
    policy = toys.module_of(engine, "policy")
    first, second = (engine.call(policy.forward_step, {"prompt": [1, 2]}) for _ in range(2))
    assert first is not None
    assert first["action"].equal(second["action"])


class Chooser(BaseModule):
    """Takes two batches, and logs from its hooks."""

    def before_episode(self) -> None:
        self.log("begun", 2.0, "sum")

    def after_episode(self) -> None:
        self.log("ended", 3.0, "sum")

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return data

    @chatlearn.step
    def longer(self, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        return {"longer": [max(a, b, key=len) for a, b in zip(first["text"], second["text"], strict=True)]}


def test_calling_a_step_with_several_batches(tmp_path: Path) -> None:
    """Separate for a step with two data parameters, merged for a step with one."""
    chooser = Chooser("chooser")
    chatlearn.init(toys.settings(tmp_path))
    engine = Engine(Environment(lambda batch: chooser.longer(batch, batch))).set_dataset(["a"])
    a, b = {"text": ["a", "bbb"]}, {"text": ["aa", "b"]}
    assert engine.call(chooser.longer, a, b) == {"longer": ["aa", "bbb"]}
    assert engine.call(chooser.forward_step, {"x": [1], "y": [1]}, {"y": [2]}) == {"x": [1], "y": [2]}
    with pytest.raises(EngineError, match=r"chooser\.longer takes first, second, but 1 batches are given"):
        engine.call(chooser.longer, a)


def test_hooks_can_log(tmp_path: Path) -> None:
    """An episode's row has what was logged before and after it."""
    chooser = Chooser("chooser")
    chatlearn.init(toys.settings(tmp_path, num_episode=2))
    Engine(Environment(lambda batch: chooser.forward_step(batch))).set_dataset(["a"]).learn()
    rows = toys.rows_of(tmp_path / "toy")
    assert [(row["chooser/begun"], row["chooser/ended"]) for row in rows] == [(2.0, 3.0), (2.0, 3.0)]


@pytest.mark.parametrize("stranger", [toys.Policy("other").forward_step, len, toys.Policy.forward_step])
def test_calling_what_is_no_step_of_the_engine(stranger: Any, tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    with pytest.raises(EngineError, match=r"engine\.call\(policy\.forward_step, data\)"):
        toys.make_engine().call(stranger, {"prompt": [1]})


def test_evaluating_before_and_after_learning(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, num_episode=3, eval_episode_interval=3))
    engine = toys.make_engine()
    before, again = engine.evaluate(), engine.evaluate()
    last = engine.learn()
    after = engine.evaluate()
    assert last is not None
    assert before.metrics == again.metrics
    assert after.metrics == last.metrics
    assert after.metrics != before.metrics
    # the whole of the data set, in order, in generation batches
    assert [batch["prompt"] for batch in after.results] == [list(range(100, 108)), [108, 109]]


def test_evaluating_before_learning_leaves_no_mark_on_the_run(tmp_path: Path) -> None:
    rows = []
    for name in ("plain", "evaluated"):
        chatlearn.init(toys.settings(tmp_path, exp_name=name))
        engine = toys.make_engine()
        if name == "evaluated":
            engine.evaluate()
        engine.learn()
        rows.append(toys.rows_of(tmp_path / name))
    assert rows[0] == rows[1]


def test_an_evaluation_metric_is_the_mean_over_samples(tmp_path: Path) -> None:
    """Ten samples in batches of eight and two: a mean over batches would weigh the two too much."""
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine()
    evaluation = engine.evaluate()
    actions = [float(a) for batch in evaluation.results for a in batch["action"]]
    targets = [toys.math.sin(p / 2) for p in range(100, 110)]
    mean = sum(-((a - t) ** 2) for a, t in zip(actions, targets, strict=True)) / 10
    assert evaluation.metrics["eval/reward/reward"] == pytest.approx(mean, abs=1e-6)


def test_another_evaluator_needs_the_engines_modules(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine(evaluate=False)
    with pytest.raises(EngineError, match="no evaluator"):
        engine.evaluate()
    policy, stranger = toys.module_of(engine, "policy"), toys.Policy("stranger")
    own = Evaluator(lambda batch: policy.eval_step(batch)).set_dataset([5])
    assert engine.evaluate(own).results[0]["prompt"] == [5]
    with pytest.raises(EngineError, match="stranger"):
        engine.evaluate(Evaluator(lambda batch: stranger.eval_step(batch)).set_dataset([5]))


def test_check_shows_the_flows_and_starts_nothing(tmp_path: Path) -> None:
    class Loud(toys.Policy):
        def setup(self) -> None:
            EVENTS.append(("setup",))

    config = toys.settings(tmp_path)
    config["models"] = {name: {} for name in ("policy", "reward", "learner", "spare")}
    chatlearn.init(config)
    text = toys.make_engine(Loud).check()
    for words in ("env_flow", "policy.forward_step", "reward.forward_step", "trainer_flow", "learner.train_step"):
        assert words in text
    assert "spare" in text  # a configured model that no flow uses is a note
    assert EVENTS == []
    assert list(tmp_path.iterdir()) == []


def test_an_engine_learns_once(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine()
    engine.learn()
    with pytest.raises(EngineError, match="learned already"):
        engine.learn()


def test_stopping_ends_replicas_and_may_be_repeated(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine()
    engine.learn()
    assert engine._deployed.handles()
    engine.stop()
    engine.stop()
    assert engine._deployment is None


def test_the_callers_generators_and_threads_are_left_alone(tmp_path: Path) -> None:
    import random

    import numpy as np
    import torch

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    chatlearn.init(toys.settings(tmp_path, eval_episode_interval=1))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    threads = torch.get_num_threads()
    engine = toys.make_engine()
    engine.evaluate()
    engine.learn()
    toys.weights_of(engine, "policy")
    assert draw() == expected
    assert torch.get_num_threads() == threads
