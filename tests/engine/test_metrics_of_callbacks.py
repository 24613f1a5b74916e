"""What callbacks and ``post_process`` add to the metrics of an episode."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from engine_cases import Source, build, rows, settings

import chatlearn
from chatlearn import EngineError, Evaluator
from chatlearn.engine.callbacks import POINTS


def _learned(folder, point, change, **runtime):
    chatlearn.init(settings(folder, num_episode=1, **runtime))
    engine, *_ = build()
    engine.add_callback(point, lambda info: change(info.metrics))
    engine.learn()
    return rows(folder)[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2),
        (1.5, 1.5),
        (True, 1),
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (np.array(2.5), 2.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(4), 4),
        (torch.tensor(1.0, requires_grad=True), 1.0),
    ],
)
def test_numbers_of_numpy_and_torch_are_metrics_of_a_callback(tmp_path, value, expected):
    row = _learned(tmp_path, "after_train", lambda metrics: metrics.update({"mine/reward": value}))
    assert row["mine/reward"] == expected
    assert type(row["mine/reward"]) is type(expected)


def test_numbers_that_json_does_not_have_are_told_as_those_of_modules(tmp_path):
    row = _learned(tmp_path, "after_train", lambda metrics: metrics.update({"mine/x": np.float64("-inf")}))
    assert row["mine/x"] is None
    assert float(row["non_finite"]["mine/x"]) == -math.inf


@pytest.mark.parametrize("point", [point for point in POINTS if point not in ("after_save", "after_evaluate")])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "NoneType"),
        ("text", "str 'text'"),
        ([1, 2], "list"),
        (1 + 2j, "complex"),
        (torch.tensor(1 + 2j), r"Tensor \[\]"),
        (torch.tensor([1.0]), r"Tensor \[1\]"),
        (torch.tensor(1.0, device="meta"), r"Tensor \[\]"),
        pytest.param(10**400, "int", id="huge"),
    ],
)
def test_what_is_no_number_is_refused_where_a_callback_sets_it(tmp_path, point, value, words):
    with pytest.raises(EngineError) as caught:
        _learned(tmp_path, point, lambda metrics: metrics.update({"mine/reward": value}))
    place = rf"{__file__}:\d+: the callback .*, called at '{point}': "
    assert caught.match(place + rf"info\.metrics\['mine/reward'\] is {words}, but a metric is one real number")


@pytest.mark.parametrize(
    "key",
    ["episode", "num_samples", "global_batches", "weight_version", "non_finite", "time/train_seconds", 5, None, ""],
)
def test_names_that_are_no_metrics_are_refused(tmp_path, key):
    with pytest.raises(EngineError, match=r"info\.metrics\[.*\] can't be a metric.*Choose a name"):
        _learned(tmp_path, "after_train", lambda metrics: metrics.update({key: 7.0}))


def test_the_best_metric_may_be_a_tensor_of_a_callback(tmp_path):
    _learned(
        tmp_path,
        "after_train",
        lambda metrics: metrics.update({"mine/score": torch.tensor(0.25)}),
        best_metric="mine/score",
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["best_metric"], result["best_episode"]) == (0.25, 1)


def test_numbers_of_numpy_and_torch_are_metrics_of_post_process(tmp_path):
    chatlearn.init(settings(tmp_path, num_episode=1, eval_episode_interval=1))
    values = {
        "t": torch.tensor(1.5),
        "f": np.float32(2.5),
        "i": np.int64(3),
        "plain": 4,
        "nan": torch.tensor(math.nan),
        "flag": True,
        "text": "no",
        "many": torch.tensor([1.0, 2.0]),
    }
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2])
    evaluator.set_post_process_func(lambda results, info: values)
    engine, *_ = build(evaluator=evaluator)
    assert engine.learn().results is values
    row = rows(tmp_path)[0]
    found = {key: value for key, value in row.items() if key.startswith("eval/")}
    assert found == {"eval/t": 1.5, "eval/f": 2.5, "eval/i": 3, "eval/plain": 4, "eval/nan": None}
    assert row["non_finite"] == {"eval/nan": "nan"}
