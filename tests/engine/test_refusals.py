"""What an engine refuses before it could go wrong silently, and what it does without being told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toys

import chatlearn
from chatlearn import BaseModule, CheckpointError, ConfigError, Engine, Environment, ModuleError, StepError, TorchModule
from chatlearn.config import active


def test_a_trained_module_has_one_replica(tmp_path: Path) -> None:
    chatlearn.init(
        {
            **toys.settings(tmp_path),
            "models": {"policy": {"num_replica": 3}, "reward": {}, "learner": {"num_replica": 2}},
        }
    )
    with pytest.raises(ConfigError, match=r"(?s)models\.learner\.num_replica.*is 2.*trains 'learner'.*set it to 1"):
        toys.make_engine().learn()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, r"runtime\.seed was 0 and is 5"),
        ({"train_micro_batch_size": 8}, r"runtime\.train_micro_batch_size was 4 and is 8"),
        ({"sample_per_episode": 10}, r"runtime\.sample_per_episode was 20 and is 10"),
    ],
)
def test_a_resume_under_other_settings_is_refused(change: dict[str, int], words: str, tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, num_episode=2, save_episode_interval=1))
    toys.make_engine().learn()
    files = [tmp_path / "toy" / name for name in ("metrics.jsonl", "config.yaml", "result.json")]
    before = [path.read_text() for path in files]
    checkpoint = tmp_path / "toy" / "checkpoints" / "episode-000001"
    chatlearn.init(toys.settings(tmp_path, save_episode_interval=1, resume=str(checkpoint), **change))
    with pytest.raises(CheckpointError, match=words):
        toys.make_engine().learn()
    assert [path.read_text() for path in files] == before


def test_a_resume_with_more_episodes_and_replicas_is_allowed(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, num_episode=1, save_episode_interval=1))
    toys.make_engine().learn()
    checkpoint = tmp_path / "toy" / "checkpoints" / "episode-000001"
    more = toys.settings(tmp_path, num_episode=3, resume=str(checkpoint))
    chatlearn.init({**more, "models": {"policy": {"num_replica": 2}, "reward": {}, "learner": {}}})
    toys.make_engine().learn()
    assert [row["episode"] for row in toys.rows_of(tmp_path / "toy")] == [1, 2, 3]


def test_a_finished_run_still_has_a_folder(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    toys.make_engine().learn()
    chatlearn.init(toys.settings(tmp_path, resume="auto"))
    engine = toys.make_engine()
    engine.learn()
    assert engine.run.path == tmp_path / "toy"


def test_attributes_are_refused_once_an_engine_has_the_module(tmp_path: Path) -> None:
    engine = toys.make_engine()
    with pytest.raises(ModuleError, match=r"policy\.scale is set after an Engine took the module"):
        toys.module_of(engine, "policy").scale = 5


class Odd(TorchModule):
    """Keeps a class, and returns what it is told to."""

    result: Any = None

    def setup(self) -> None:
        self.kind = torch.nn.Linear

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        return {"x": torch.eye(len(data["prompt"])).to_sparse()} if iteration == 1 else data


def test_a_class_on_self_is_no_state_and_a_sparse_result_is_named(tmp_path: Path) -> None:
    """The first batch passes, so setup and its checks have; the second is sparse."""
    chatlearn.init(toys.settings(tmp_path))
    odd = Odd("odd")
    with pytest.raises(
        StepError, match=r"odd\[0\]\.forward_step .*'x' is a tensor of layout torch\.sparse_coo.*to_dense"
    ):
        Engine(Environment(lambda batch: odd.forward_step(batch))).set_dataset(["a"] * 20).learn()


class Moody(BaseModule):
    """Another key in every second batch."""

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        return {**data, f"extra{iteration % 2}": data["prompt"]}


def test_batches_with_different_keys_are_named_where_they_meet(tmp_path: Path) -> None:
    moody, learner = Moody("moody"), toys.Learner("learner")
    chatlearn.init(toys.settings(tmp_path, train_global_batch_size=16, train_micro_batch_size=4))
    engine = Engine(
        Environment(lambda batch: moody.forward_step(batch)), chatlearn.Trainer(lambda batch: learner.train_step(batch))
    )
    with pytest.raises(chatlearn.DataError, match=r"input of learner\[0\]\.train_step \(episode 1.*extra0"):
        engine.set_dataset(["a"] * 20).learn()


def test_without_init_the_command_line_and_defaults_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the documents' custom flows stand, which call no init()."""
    monkeypatch.setattr(active, "_active", type(active._active)())
    words = [f"runtime.{key}={value}" for key, value in toys.settings(tmp_path)["runtime"].items()]
    monkeypatch.setattr("sys.argv", ["program.py", *words])
    toys.make_engine().learn()
    assert len(toys.rows_of(tmp_path / "toy")) == 2
