"""A user's own exception comes with the module, step, episode and samples where it was raised."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import toys
from bad_input_areas.program import Echo, engine_of
from refusal_cases import fails

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Evaluator, StepError, Trainer


class MineError(Exception):
    """An exception of the user's own."""


def _deep(data: dict[str, Any]) -> None:
    raise MineError("my words")


class Failing(toys.Policy):
    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        if iteration == 4:
            _deep(data)
        return super().forward_step(data, iteration)


def test_a_step_that_raises(tmp_path: Path) -> None:
    """The second batch of the second episode, on the replica whose turn it was: 4 mod 3."""
    config = toys.settings(tmp_path)
    config["models"] = {"policy": {"num_replica": 3}, "reward": {}, "learner": {}}
    chatlearn.init(config)
    words = (
        "MineError: my words",
        "policy[1].forward_step",
        "rank 0",
        "episode 2",
        "batch 4",
        "sample ids [28, 29, 30, 31, 32, 33, 34, 35]",
    )
    error = fails(toys.make_engine(Failing), StepError, *words)
    assert isinstance(error.__cause__, MineError)
    text = "".join(traceback.format_exception(error))
    assert text.index("in _deep") < text.index("MineError: my words") < text.index("StepError")


def test_a_train_step_that_raises() -> None:
    class FailingLearner(toys.Learner):
        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            if train_info["iteration"] == 5:
                raise MineError("no gradient")

    learner = FailingLearner("learner")
    engine = Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset(range(9))
    # 3 global batches an episode: iteration 5 is the last, of 4 samples, in the second
    words = (
        "MineError: no gradient",
        "learner[0].train_step",
        "episode 2",
        "global batch 5",
        "sample ids [36, 37, 38, 39]",
    )
    assert isinstance(fails(engine, StepError, *words).__cause__, MineError)


@pytest.mark.parametrize("method", ["setup", "before_episode", "after_episode", "build_dataset"])
def test_other_methods_that_raise(method: str) -> None:
    def failing(self: BaseModule, *args: Any) -> None:
        raise MineError("my words")

    module = type("Broken", (Echo,), {method: failing})("echo")
    words = ["MineError: my words", f"echo[0].{method}", *(["episode 1"] if "episode" in method else [])]
    error = fails(engine_of(module), StepError, *words)
    assert isinstance(error.__cause__, MineError)


def test_an_evaluation_that_raises() -> None:
    class FailingEcho(Echo):
        def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
            raise MineError("my words")

    module = FailingEcho("echo")
    evaluator = Evaluator(lambda batch: module.eval_step(batch)).set_dataset([1, 2])
    engine = Engine(None, None, evaluator)
    fails(
        engine, StepError, "MineError: my words", "echo[0].eval_step", "evaluation after episode 1", "sample ids [0, 1]"
    )


def test_an_exception_of_a_flow_itself_passes_through() -> None:
    def flow(batch: Any) -> Any:
        raise MineError("in the flow")

    with pytest.raises(MineError, match="in the flow"):
        Environment(flow)
