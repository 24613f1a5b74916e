"""A run goes on from its last checkpoint within the same program after a replica has died that can't be replaced.

The deaths here are raised where a cluster would; tests/chaos has real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys

import chatlearn
import chatlearn.engine.run
from chatlearn.errors import WorkerError
from chatlearn.runtime.lost import LostReplicaError


def learned(folder: Path, deaths: list[tuple[str, int]] | None = None, **runtime: Any) -> tuple[Any, ...]:
    """A run of six episodes with checkpoints after every second; the learner dies at points of the episode."""
    settings = toys.settings(folder, num_episode=6, save_episode_interval=2, eval_episode_interval=2, **runtime)
    chatlearn.init(settings)
    engine = toys.make_engine()
    left = list(deaths or ())
    seen: list[int] = []
    engine.add_callback("after_log", lambda info: seen.append(info.episode))
    for point in {point for point, _ in left}:

        def die(info: Any, point: str = point) -> None:
            if (point, info.episode) in left:
                left.remove((point, info.episode))
                raise LostReplicaError("learner[0] died (killed by the test).")

        engine.add_callback(point, die)
    evaluation = engine.learn()
    assert evaluation is not None
    result = json.loads((engine.run.path / "result.json").read_text())
    del result["seconds"]
    return toys.rows_of(engine.run.path), toys.weights_of(engine, "learner").tolist(), evaluation.metrics, result, seen


@pytest.mark.parametrize(
    ("death", "seen"),
    [
        (("after_train", 4), [0, 1, 2, 3, 4, 5]),
        (("after_log", 4), [0, 1, 2, 3, 4, 4, 5]),
        (("after_experience", 3), [0, 1, 2, 2, 3, 4, 5]),
        (("after_save", 3), [0, 1, 2, 3, 4, 5]),
    ],
    ids=["in training", "after the row was written", "two episodes after a checkpoint", "right after a checkpoint"],
)
def test_the_record_is_that_of_a_run_in_which_nothing_died(
    death: tuple[str, int], seen: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *whole, _ = learned(tmp_path / "whole")
    *restarted, episodes = learned(tmp_path / "restarted", [death], max_restarts=1)
    assert restarted == whole
    assert episodes == seen
    output = capsys.readouterr().out
    assert output.count("learner[0] died (killed by the test).") == 1
    assert output.count("(restart 1 of 1)") == 1
    assert "Run failed" not in output


def test_several_deaths_are_made_up_for_while_restarts_are_left(tmp_path: Path) -> None:
    deaths = [("after_train", 2), ("after_train", 3), ("after_sync", 5)]
    *whole, _ = learned(tmp_path / "whole")
    *restarted, _ = learned(tmp_path / "restarted", deaths, max_restarts=3)
    assert restarted == whole


@pytest.mark.parametrize(
    ("deaths", "max_restarts", "episodes"),
    [([("after_train", 4)], 0, 4), ([("after_train", 1)], 3, 1), ([("after_train", 4)] * 3, 2, 4)],
    ids=["no restart is allowed", "there is no checkpoint", "the death repeats"],
)
def test_the_run_ends_with_the_error_and_how_to_go_on_where_no_restart_follows(
    deaths: list[tuple[str, int]],
    max_restarts: int,
    episodes: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(WorkerError, match=r"learner\[0\] died"):
        learned(tmp_path, deaths, max_restarts=max_restarts)
    run = tmp_path / "toy"
    output = capsys.readouterr().out
    assert output.count(f"Run failed after {episodes} complete episodes. Go on with: runtime.resume={run}\n") == 1
    assert json.loads((run / "result.json").read_text())["status"] == "failed"


def test_other_errors_are_no_reason_for_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chatlearn.init(toys.settings(tmp_path, num_episode=4, save_episode_interval=1, max_restarts=5))
    engine = toys.make_engine()

    def hang(info: Any) -> None:
        if info.episode == 2:
            raise WorkerError("No call of any module has ended for 1800 s, so the run hangs.")

    engine.add_callback("after_train", hang)
    with pytest.raises(WorkerError, match="the run hangs"):
        engine.learn()
    assert "(restart " not in capsys.readouterr().out


def test_what_fails_on_the_way_out_does_not_hide_why_the_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chatlearn.init(toys.settings(tmp_path))
    engine = toys.make_engine()

    def fail(info: Any) -> None:
        raise RuntimeError("the real cause")

    def full(run: Any, status: str) -> None:
        raise OSError("no space left on the device")

    engine.add_callback("after_train", fail)
    monkeypatch.setattr(chatlearn.engine.run.Run, "end", full)
    with pytest.raises(RuntimeError, match="the real cause"):
        engine.learn()
    assert "note: while the run was closed: OSError: no space left on the device" in capsys.readouterr().out


def test_a_run_that_had_seen_enough_does_not_train_on_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping ends it after an episode; it is killed before it has written its end."""
    settings = {"num_episode": 9, "save_episode_interval": 1, "best_metric": "learner/loss", "best_metric_mode": "max"}
    chatlearn.init(toys.settings(tmp_path, **settings, early_stop_patience=1))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chatlearn.engine.run.Run, "finish", killed)
        engine = toys.make_engine()
        with pytest.raises(KeyboardInterrupt):
            engine.learn()
    before = toys.rows_of(tmp_path / "toy")
    assert len(before) < 9

    chatlearn.init(toys.settings(tmp_path, **settings, early_stop_patience=1, resume="auto"))
    toys.make_engine().learn()
    assert toys.rows_of(tmp_path / "toy") == before
    result = json.loads((tmp_path / "toy" / "result.json").read_text())
    assert result["status"] == "finished"
    assert "early_stop_patience" in result["ended_early"]
