"""Which checkpoints are kept, and runs that end by a metric."""

from __future__ import annotations

import json

from engine_cases import build, settings

import chatlearn


def test_the_best_checkpoint_and_early_stopping(tmp_path):
    """Losses 5, 3, 1, 2, 4: the third episode is the best, and two worse ones end the run."""
    best = {"best_metric": "learner/loss", "best_metric_mode": "min", "early_stop_patience": 2}
    chatlearn.init(settings(tmp_path, num_episode=50, max_data_ckpt_nums=1, **best))
    engine, *_ = build()
    engine.learn()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["episodes"], result["best_episode"], result["best_metric"]) == (5, 3, 1.0)
    assert "early_stop_patience" in result["ended_early"]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "best").read_text().strip() == "episode-000003"
    assert [path.name for path in checkpoints.glob("episode-*")] == ["episode-000003"]


def test_a_threshold_ends_the_run(tmp_path):
    best = {"best_metric": "learner/loss", "best_metric_mode": "min", "early_stop_threshold": 3.0}
    chatlearn.init(settings(tmp_path, num_episode=50, **best))
    engine, *_ = build()
    engine.learn()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["episodes"] == 2


def test_a_best_metric_that_never_came_is_told(tmp_path, capsys):
    chatlearn.init(settings(tmp_path, best_metric="learner/los", early_stop_patience=1))
    build()[0].learn()
    assert "'learner/los', but no episode had that metric; the last one had learner/loss" in capsys.readouterr().out


def test_old_checkpoints_are_deleted(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=5, save_episode_interval=1, max_data_ckpt_nums=2))
    build()[0].learn()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("episode-*"))
    assert names == ["episode-000004", "episode-000005"]
