"""The same seed gives the same bits: twice, with more replicas, through bytes, interrupted and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toys

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer
from chatlearn.engine.engine import Interrupted

EPISODES = 4
BATCHES = 3  # of 8, 8 and 4 samples, in generation and in training

Outcome = tuple[list[dict[str, Any]], torch.Tensor, torch.Tensor]


def _config(folder: Path, replicas: int = 1, isolate: bool = False, **runtime: Any) -> dict[str, Any]:
    config = toys.settings(folder, num_episode=EPISODES, eval_episode_interval=2, num_training_epoch=2, **runtime)
    config["models"] = {name: {"num_replica": replicas} for name in ("policy", "reward")} | {"learner": {}}
    return {**config, "runtime_env": {"isolate": isolate}}


def _outcome(engine: Engine) -> Outcome:
    return toys.rows_of(engine.run.path), toys.weights_of(engine, "policy"), toys.weights_of(engine, "learner")


def _learned(config: dict[str, Any]) -> Outcome:
    chatlearn.init(config)
    engine = toys.make_engine()
    engine.learn()
    return _outcome(engine)


def _assert_same(one: Outcome, other: Outcome) -> None:
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])
    assert torch.equal(one[2], other[2])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return _learned(_config(tmp_path_factory.mktemp("uninterrupted")))


def test_the_run_does_something(uninterrupted: Outcome) -> None:
    """Otherwise equal outcomes would say nothing."""
    rows, policy, learner = uninterrupted
    assert torch.equal(policy, learner)
    assert len({row["learner/loss"] for row in rows}) == EPISODES
    assert len({row["policy/action"] for row in rows}) == EPISODES
    assert [row["global_batches"] for row in rows] == [2 * BATCHES * i for i in range(1, EPISODES + 1)]


def test_the_same_seed_twice(uninterrupted: Outcome, tmp_path: Path) -> None:
    torch.manual_seed(17)  # whatever the program drew before makes no difference
    _assert_same(_learned(_config(tmp_path)), uninterrupted)


def test_what_one_module_draws_changes_no_other(tmp_path: Path) -> None:
    """The generators are seeded before every step, so that a draw depends on the place of the call alone."""

    class Drawing(toys.Reward):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            torch.rand(self.model_args["draws"])
            return super().forward_step(data, iteration)

    outcomes = []
    for draws in (0, 5):
        policy, reward, learner = toys.Policy("policy"), Drawing("reward"), toys.Learner("learner")
        engine = Engine(
            Environment(lambda batch, p=policy, r=reward: r.forward_step(p.forward_step(batch))),
            Trainer(lambda batch, t=learner: t.train_step(batch)),
        )
        models = {"policy": {}, "learner": {}, "reward": {"args": {"draws": draws}}}
        chatlearn.init({**toys.settings(tmp_path), "models": models})
        engine.set_parameter_sync(learner, policy).set_dataset(range(50)).learn()
        outcomes.append(_outcome(engine))
    _assert_same(*outcomes)


def test_another_seed_is_another_run(uninterrupted: Outcome, tmp_path: Path) -> None:
    rows, policy, _ = _learned(_config(tmp_path, seed=1))
    assert not torch.equal(policy, uninterrupted[1])
    assert all(a != b for a, b in zip(rows, uninterrupted[0], strict=True))


@pytest.mark.parametrize(("replicas", "isolate"), [(3, False), (1, True), (3, True)])
def test_replicas_and_isolation_change_no_bit(
    replicas: int, isolate: bool, uninterrupted: Outcome, tmp_path: Path
) -> None:
    _assert_same(_learned(_config(tmp_path, replicas, isolate)), uninterrupted)
    assert {event[2] for event in toys.events("policy.forward_step")} == set(range(replicas))


def test_more_threads_than_one_are_asked_for_explicitly(tmp_path: Path) -> None:
    """Sums depend on the number of threads, so a module gets its own number, not the process's."""

    class Threads(BaseModule):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            toys.EVENTS.append((self.name, torch.get_num_threads()))
            return data

    one, two = Threads("one"), Threads("two")
    config = toys.settings(tmp_path, num_episode=1, sample_per_episode=2)
    chatlearn.init({**config, "models": {"one": {}, "two": {"cpu_per_process": 2}}})
    Engine(Environment(lambda batch: two.forward_step(one.forward_step(batch)))).set_dataset([1, 2]).learn()
    assert toys.EVENTS == [("one", 1), ("two", 2)]


def _interrupted(config: dict[str, Any], module: str, iteration: int) -> None:
    chatlearn.init(config)
    toys.INTERRUPT[module] = iteration
    with pytest.raises(Interrupted) as caught:
        toys.make_engine().learn()
    assert caught.value.code == 130
    toys.INTERRUPT.clear()


@pytest.mark.parametrize("interval", [1, 2, 3, 4, None])
@pytest.mark.parametrize(("module", "iteration"), [("learner", 3 * 2 * BATCHES + 1), ("policy", 3 * BATCHES + 1)])
def test_interrupted_in_the_fourth_episode_and_resumed(
    interval: int | None, module: str, iteration: int, uninterrupted: Outcome, tmp_path: Path
) -> None:
    """Each interval puts the checkpoint at another distance from the interruption; ``None`` starts from nothing."""
    config = _config(tmp_path, save_episode_interval=interval)
    _interrupted(config, module, iteration)
    assert [row["episode"] for row in toys.rows_of(tmp_path / "toy")] == [1, 2, 3]
    config["runtime"]["resume"] = "auto"
    _assert_same(_learned(config), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_interrupted_three_times(uninterrupted: Outcome, tmp_path: Path) -> None:
    config = _config(tmp_path, save_episode_interval=1, resume="auto")
    _interrupted(config, "learner", 1)
    _interrupted(config, "policy", BATCHES + 2)
    _interrupted(config, "learner", 2 * 2 * BATCHES)
    _assert_same(_learned(config), uninterrupted)


@pytest.mark.parametrize("changes", [{"replicas": 3}, {"isolate": True}])
def test_resumed_on_other_replicas(changes: dict[str, Any], uninterrupted: Outcome, tmp_path: Path) -> None:
    _interrupted(_config(tmp_path, save_episode_interval=1), "learner", 2 * 2 * BATCHES + 1)
    _assert_same(_learned(_config(tmp_path, save_episode_interval=1, resume="auto", **changes)), uninterrupted)


def test_counters_go_on_after_a_resume(tmp_path: Path) -> None:
    config = _config(tmp_path, save_episode_interval=1, resume="auto")
    _interrupted(config, "learner", 2 * 2 * BATCHES)
    toys.EVENTS.clear()
    _learned(config)
    assert [e[1] for e in toys.events("policy.forward_step")] == list(range(2 * BATCHES, 4 * BATCHES))
    assert [e[1] for e in toys.events("learner.train_step")] == list(range(4 * BATCHES, 8 * BATCHES))
    assert toys.events("learner.train_step")[0][2]["episode"] == 2


class Controller:
    """Plain state with state_dict, as a KL controller is; ``kind`` is how it hands its number out."""

    def __init__(self, kind: str) -> None:
        self.kind, self.value = kind, 1.0

    def state_dict(self) -> dict[str, Any]:
        import numpy as np

        if self.kind == "array":
            return {"value": np.pad([self.value], 2000)}
        return {"value": torch.tensor(self.value, dtype=torch.float64) if self.kind == "tensor" else self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"][2000] if self.kind == "array" else state["value"])


class Controlled(toys.Reward):
    """An inference module whose state moves in ``after_episode``."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name)
        self.kind = kind

    def setup(self) -> None:
        self.controller = Controller(self.kind)

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        self.log("coefficient", self.controller.value)
        return super().forward_step(data, iteration)

    def after_episode(self) -> None:
        self.controller.value *= 1.5


@pytest.mark.parametrize("kind", ["number", "tensor", "array"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_state_of_an_inference_module_survives(kind: str, replicas: int, tmp_path: Path) -> None:
    """1, 1.5, 2.25 … whatever is interrupted in between."""

    def learned(module: str | None) -> list[float]:
        policy, reward, learner = toys.Policy("policy"), Controlled("reward", kind), toys.Learner("learner")
        engine = Engine(
            Environment(lambda batch: reward.forward_step(policy.forward_step(batch))),
            Trainer(lambda batch: learner.train_step(batch)),
        )
        config = toys.settings(tmp_path, num_episode=4, save_episode_interval=1, resume="auto")
        chatlearn.init({**config, "models": {"policy": {}, "learner": {}, "reward": {"num_replica": replicas}}})
        engine.set_dataset(range(10))
        if module is None:
            engine.learn()
        else:
            toys.INTERRUPT[module] = 2 * BATCHES
            with pytest.raises(Interrupted):
                engine.learn()
            toys.INTERRUPT.clear()
        return [row["reward/coefficient"] for row in toys.rows_of(tmp_path / "toy")]

    assert learned("policy") == [1.0, 1.5]
    assert learned(None) == [1.0, 1.5, 2.25, 3.375]


class Memory(toys.Reward):
    """Keeps state from call to call."""

    stateful = True

    def setup(self) -> None:
        self.seen = 0

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        self.seen += len(data["prompt"])
        self.log("seen", self.seen, "max")
        return super().forward_step(data, iteration)

    def save_checkpoint(self, iteration: int) -> None:
        (self.checkpoint_path / "seen.txt").write_text(str(self.seen))

    def load_checkpoint(self, iteration: int) -> None:
        self.seen = int((self.checkpoint_path / "seen.txt").read_text())


def test_a_stateful_module_keeps_its_own_files(tmp_path: Path) -> None:
    def engine() -> Engine:
        policy, memory = toys.Policy("policy"), Memory("memory")
        return Engine(Environment(lambda b: memory.forward_step(policy.forward_step(b)))).set_dataset(range(9))

    chatlearn.init(toys.settings(tmp_path, num_episode=3, save_episode_interval=1, resume="auto"))
    toys.INTERRUPT["policy"] = BATCHES + 1
    with pytest.raises(Interrupted):
        engine().learn()
    toys.INTERRUPT.clear()
    engine().learn()
    assert [row["memory/seen"] for row in toys.rows_of(tmp_path / "toy")] == [20, 40, 60]


def test_a_stateful_module_has_one_replica(tmp_path: Path) -> None:
    chatlearn.init({**toys.settings(tmp_path), "models": {"memory": {"num_replica": 2}}})
    memory = Memory("memory")
    with pytest.raises(chatlearn.ModuleError, match=r"stateful.*models\.memory\.num_replica.*is 2.*Set it to 1"):
        Engine(Environment(lambda batch: memory.forward_step(batch))).set_dataset([1]).learn()
