"""Evaluations: before training, over several data sets, without anything else."""

from __future__ import annotations

import pytest
from engine_cases import Source, build, rows, settings

import chatlearn
from chatlearn import EvalEngine, Evaluator


def test_an_evaluation_before_training_is_row_0(tmp_path):
    chatlearn.init(settings(tmp_path, enable_eval_before_training=True, eval_episode_interval=3))
    reader = Source("reader")
    evaluator = Evaluator(lambda batch: reader.eval_step(batch)).set_dataset([1, 2, 3])
    evaluator.set_post_process_func(lambda results, info: {"sum": sum(float(r["x"].sum()) for r in results), **info})
    engine, *_ = build(evaluator=evaluator)
    evaluation = engine.learn()
    found = rows(tmp_path)
    assert [row["episode"] for row in found] == [0, 1, 2, 3]
    assert [row.get("eval/sum") for row in found] == [6.0, None, None, 6.0]
    assert evaluation.results == {"sum": 6.0, "episode": 3, "train_iteration": 3, "dataset": ""}


def test_an_evaluator_over_several_data_sets(tmp_path):
    chatlearn.init(settings(tmp_path))

    class Logging(Source):
        def eval_step(self, data):
            out = self.forward_step(data)
            self.log("mean", out["x"].mean())
            return out

    class Summing(Evaluator):
        def post_process(self, results, info):
            return {"count": sum(len(batch["x"]) for batch in results), "what": info["dataset"]}

    reader = Logging("reader")
    flow = Summing(lambda batch: reader.eval_step(batch))
    engine = EvalEngine(evaluator=flow.set_multiple_datasets({"low": [1, 2, 3], "high": [10, 20]}))
    evaluation = engine.eval()
    assert evaluation.metrics == {
        "eval/low/reader/mean": 2.0,
        "eval/low/count": 3,
        "eval/high/reader/mean": 15.0,
        "eval/high/count": 2,
    }
    assert evaluation.results["high"] == {"count": 2, "what": "high"}
    engine.stop()


def test_eval_engine_takes_a_flow_or_an_evaluator(tmp_path):
    chatlearn.init(settings(tmp_path))
    reader = Source("reader")
    engine = EvalEngine(lambda batch: reader.eval_step(batch)).set_dataset([1, 2, 3])
    assert [batch["prompt"] for batch in engine.evaluate().results] == [[1, 2], [3]]
    engine.stop()
    with pytest.raises(chatlearn.EngineError, match="takes a flow, or an evaluator"):
        EvalEngine()
    with pytest.raises(chatlearn.EngineError, match="no data set"):
        EvalEngine(lambda batch: reader.eval_step(batch)).eval()
