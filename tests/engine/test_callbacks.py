"""Functions of the user at the points of an episode; what may be asked of an engine from inside of a run."""

from __future__ import annotations

import json

import pytest
from engine_cases import Source, build, rows, settings

import chatlearn
from chatlearn import Engine, Evaluator
from chatlearn.engine.callbacks import POINTS


def test_callbacks_run_at_their_points_in_order(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=2, eval_episode_interval=1, save_episode_interval=2))
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2])
    engine, *_ = build(evaluator=evaluator)
    seen = []
    for point in POINTS:
        engine.add_callback(point, lambda info, point=point: seen.append((info.episode, point)))
    engine.add_callback("after_episode", lambda info: info.metrics.update({"mine": 10.0 * info.episode}))
    engine.learn()
    in_an_episode = [point for point in POINTS if point != "after_save"]
    assert seen == [(0, point) for point in in_an_episode] + [(1, point) for point in POINTS]
    assert [row["mine"] for row in rows(tmp_path)] == [0.0, 10.0]


def test_an_unknown_point_is_refused_with_the_known_ones():
    with pytest.raises(chatlearn.EngineError, match=r"after_trian.*after_train"):
        Engine().add_callback("after_trian", print)


def test_stop_and_save_in_a_callback_wait_for_the_end_of_the_episode(tmp_path, capsys):
    chatlearn.init(settings(tmp_path, num_episode=5))
    engine, *_ = build()

    def in_second(info):
        if info.episode == 1:
            info.engine.save_checkpoint()
            info.engine.stop()
            assert not (tmp_path / "run" / "checkpoints").exists()

    engine.add_callback("after_experience", in_second)
    engine.learn()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["episodes"], result["ended_early"]) == (
        "finished",
        2,
        "engine.stop() was called",
    )
    assert (tmp_path / "run" / "checkpoints" / "episode-000002" / "run.json").exists()
    assert "ends after 2 episodes" in capsys.readouterr().out


def test_save_and_summary_before_a_run_are_refused():
    with pytest.raises(chatlearn.EngineError, match="nothing to save"):
        Engine().save_checkpoint()
    with pytest.raises(chatlearn.EngineError, match="nothing to sum up"):
        Engine().logging_summary()


def test_a_summary_names_the_metrics(tmp_path, capsys):
    chatlearn.init(settings(tmp_path))
    engine, *_ = build()
    engine.learn()
    assert "learner/loss" in engine.logging_summary()
    assert "learner/loss" in capsys.readouterr().out
