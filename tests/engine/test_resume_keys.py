"""A shared folder of checkpoints, and kernels that give the same bits each time: keys of older configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import chatlearn
from chatlearn import BaseModule, CheckpointError, Engine, Trainer

TRAINED: list[int] = []


class Learner(BaseModule):
    def setup(self) -> None:
        self.model = torch.nn.Linear(1, 1)
        TRAINED.append(-1)

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        TRAINED.append(train_info["episode"])
        self.log("deterministic", float(torch.are_deterministic_algorithms_enabled()))


def build(folder: Path, **runtime: Any) -> Engine:
    TRAINED.clear()
    base = {"num_episode": 4, "sample_per_episode": 2, "train_micro_batch_size": 2, "exp_name": "run"}
    places = {"output_dir": str(folder / "runs"), "data_checkpoint_path": str(folder / "saved")}
    chatlearn.init({"runtime": {**base, **places, "save_episode_interval": 1, **runtime}})
    learner = Learner("learner")
    return Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset([1, 2])


def learn(folder: Path, **runtime: Any) -> Engine:
    """Runs what is left of four episodes."""
    engine = build(folder, **runtime)
    engine.learn()
    return engine


def interrupted(folder: Path, after: int, **runtime: Any) -> None:
    """Runs so many episodes of the four."""

    def stop(info: Any) -> None:
        if info.episode == after:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build(folder, **runtime).add_callback("before_episode", stop).learn()


def episodes(path: Path) -> list[int]:
    return [json.loads(line)["episode"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_program_that_is_started_again_goes_on_from_its_folder_of_checkpoints(tmp_path: Path) -> None:
    interrupted(tmp_path, after=2)
    assert TRAINED == [-1, 0, 1]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "episode-000001",
        "episode-000002",
        "latest",
    ]
    assert not (tmp_path / "runs" / "run" / "checkpoints").exists()
    engine = learn(tmp_path)
    assert TRAINED == [-1, 2, 3]
    assert engine.run.path == tmp_path / "runs" / "run"
    assert episodes(engine.run.path) == [1, 2, 3, 4]


def test_it_may_begin_anew_all_the_same(tmp_path: Path) -> None:
    interrupted(tmp_path, after=2)
    engine = learn(tmp_path, enable_resume_training=False)
    assert TRAINED == [-1, 0, 1, 2, 3]
    assert engine.run.path == tmp_path / "runs" / "run-2"


def test_an_earlier_checkpoint_can_be_chosen(tmp_path: Path) -> None:
    interrupted(tmp_path, after=3)
    engine = learn(tmp_path, load_data_checkpoint_iteration=1)
    assert TRAINED == [-1, 1, 2, 3]
    assert episodes(engine.run.path) == [1, 2, 3, 4]


def test_the_number_counts_for_a_runs_own_checkpoints_too(tmp_path: Path) -> None:
    interrupted(tmp_path, after=3, data_checkpoint_path=None)
    learn(tmp_path, data_checkpoint_path=None, resume="auto", load_data_checkpoint_iteration=2)
    assert TRAINED == [-1, 2, 3]


def test_a_number_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    interrupted(tmp_path, after=2)
    with pytest.raises(CheckpointError, match=r"no checkpoint of episode 7.*is one of 1, 2\."):
        learn(tmp_path, load_data_checkpoint_iteration=7)
    with pytest.raises(CheckpointError, match=r"iteration is 7, but there is no checkpoint.*runtime\.resume"):
        learn(tmp_path, data_checkpoint_path=None, load_data_checkpoint_iteration=7)


def test_checkpoints_whose_run_folder_is_gone_go_on_in_a_new_one(tmp_path: Path) -> None:
    interrupted(tmp_path, after=2)
    (tmp_path / "runs" / "run").rename(tmp_path / "elsewhere")
    engine = learn(tmp_path)
    assert TRAINED == [-1, 2, 3]
    assert episodes(engine.run.path) == [3, 4]


def test_a_finished_run_says_so_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learn(tmp_path)
    capsys.readouterr()
    learn(tmp_path)
    assert TRAINED == []
    assert "is finished; there is nothing to resume" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [False, True])
def test_deterministic_kernels_inside_of_a_run_only(asked: bool, tmp_path: Path) -> None:
    engine = learn(tmp_path, deterministic=asked, num_episode=1)
    row = json.loads((engine.run.path / "metrics.jsonl").read_text())
    assert row["learner/deterministic"] == float(asked)
    assert not torch.are_deterministic_algorithms_enabled()
