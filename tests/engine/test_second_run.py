"""A second run in one process, and the trace that each leaves."""

from __future__ import annotations

import json
import math

import pytest
from engine_cases import build, rows, settings

import chatlearn


def test_a_second_init_closes_the_engines_of_the_first(tmp_path):
    chatlearn.init(settings(tmp_path))
    engine, source, _ = build()
    engine.learn()
    assert engine.call(source.forward_step, {"prompt": [1]})["x"].tolist() == [1.0]
    chatlearn.init(settings(tmp_path))
    for use in (engine.learn, engine.evaluate, lambda: engine.call(source.forward_step, {"prompt": [1]})):
        with pytest.raises(chatlearn.EngineError, match=r"init\(\) was called again|has no evaluator"):
            use()
    again, *_ = build()
    again.learn()
    assert again.run.path.name == "run-2"


def test_the_trace_of_a_run_is_json_with_every_call(tmp_path):
    chatlearn.init(settings(tmp_path))
    build()[0].learn()
    text = json.loads((tmp_path / "run" / "trace.json").read_text())
    events = text["traceEvents"] if isinstance(text, dict) else text
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert names.count("source.forward_step") == 3 * 2
    assert names.count("learner.train_step") == 3
    assert all(math.isfinite(event["ts"]) for event in events if event.get("ph") == "X")


def test_a_stopped_engine_has_no_trained_weights_any_more_and_says_so(tmp_path):
    chatlearn.init(settings(tmp_path))
    engine, source, _ = build()
    engine.learn()
    engine.stop()
    with pytest.raises(chatlearn.EngineError, match=r"trained weights with them.*use what the run left in .*run"):
        engine.call(source.forward_step, {"prompt": [1]})
    chatlearn.init(settings(tmp_path, resume="auto"))
    engine, source, _ = build()
    engine.learn()
    with pytest.raises(chatlearn.EngineError, match="had come to its end before"):
        engine.call(source.forward_step, {"prompt": [1]})


def test_before_learning_an_engine_may_be_stopped_and_used_again(tmp_path):
    chatlearn.init(settings(tmp_path))
    engine, source, _ = build()
    for _ in range(2):
        assert engine.call(source.forward_step, {"prompt": [1]})["x"].tolist() == [1.0]
        engine.stop()
    engine.learn()
    assert len(rows(tmp_path)) == 3
