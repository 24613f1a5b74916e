"""What several values of one metric in one call stand for; means by hand."""

from __future__ import annotations

import pytest
import torch
from engine_cases import Source, rows, settings

import chatlearn
from chatlearn import BaseModule, Engine, Environment, ModuleError, StepError, Trainer


def _row(folder, module_class, size, micro, prompts):
    """The row of one episode over all of these prompts, in batches of ``size``."""
    sizes = {"generation_batch_size": size, "train_micro_batch_size": micro, "train_global_batch_size": size}
    chatlearn.init(settings(folder, num_episode=1, sample_per_episode=len(prompts), **sizes))
    source, module = Source("source"), module_class("m")
    if hasattr(module_class, "train_step"):
        parts = Environment(lambda b: source.forward_step(b)), Trainer(lambda b: module.train_step(b))
    else:
        parts = (Environment(lambda b: module.forward_step(source.forward_step(b))),)
    Engine(*parts).set_dataset(prompts).learn()
    return rows(folder)[0]


def test_a_value_for_each_micro_batch_stands_for_its_samples(tmp_path):
    """Global batches of 4 and 3 samples, micro-batches of 2, 2, 2 and 1: the mean is that of the samples, in whatever
    order they are trained on."""

    class Learner(BaseModule):
        def train_step(self, data, train_info):
            for batch in data:
                self.log("x", batch["x"].mean())
                self.log("most", batch["x"].max(), "max")

    row = _row(tmp_path, Learner, 4, 2, [1, 2, 4, 8, 16, 32, 64])
    assert row["m/x"] == pytest.approx((1 + 2 + 4 + 8 + 16 + 32 + 64) / 7, rel=1e-6)
    assert row["m/most"] == 64


def test_values_that_are_not_one_for_each_micro_batch_share_the_samples_evenly(tmp_path):
    """Two micro-batches each in global batches of 4 and 3: three values stand for 4 samples, four for 3."""

    class Learner(BaseModule):
        def train_step(self, data, train_info):
            rows_ = sum(len(batch["x"]) for batch in data)
            for value in [1.0, 2.0, 6.0] if rows_ == 4 else [10.0, 20.0, 30.0, 40.0]:
                self.log("x", value)

    row = _row(tmp_path, Learner, 4, 2, [1, 2, 3, 4, 5, 6, 7])
    assert row["m/x"] == pytest.approx((3.0 * 4 + 25.0 * 3) / 7)


def test_several_values_of_a_forward_step_share_its_samples(tmp_path):
    """Batches of 4 and 2: a value logged twice counts no more than one that is logged once."""

    class Logging(BaseModule):
        def forward_step(self, data):
            for value in [1.0, 3.0] if len(data["x"]) == 4 else [8.0]:
                self.log("x", value)
                self.log("count", 1, "sum")
            return {"x": data["x"]}

    row = _row(tmp_path, Logging, 4, 2, [0, 1, 2, 3, 4, 5])
    assert row["m/x"] == pytest.approx((2.0 * 4 + 8.0 * 2) / 6)
    assert row["m/count"] == 3


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "minus huge"])
def test_a_number_too_large_for_a_float_is_refused_in_its_step(tmp_path, value):
    class Logging(BaseModule):
        def forward_step(self, data):
            self.log("x", value)
            return {"x": data["x"]}

    with pytest.raises(
        StepError, match=r"m\.log\('x'\): the number is too large for a float(.|\n)*m\[0\]\.forward_step"
    ):
        _row(tmp_path, Logging, 4, 2, [0, 1, 2, 3])


@pytest.mark.parametrize("value", [torch.tensor(1 + 2j), torch.tensor(1.0, device="meta")])
def test_a_tensor_that_is_no_real_number_is_refused(tmp_path, value):
    class Logging(BaseModule):
        def forward_step(self, data):
            self.log("x", value)
            return {"x": data["x"]}

    with pytest.raises(ModuleError, match=r"m\.log\('x'\): Tensor is no real number"):
        _row(tmp_path, Logging, 4, 2, [0, 1, 2, 3])


def test_what_a_client_logs_counts_once_though_its_caller_has_hooks(tmp_path):
    class Judge(BaseModule):
        def forward_step(self, data):
            self.log("asked", 1, "sum")
            return {"s": data["x"]}

    class Agent(BaseModule):
        def forward_step(self, data, judge):
            return {**data, **judge.forward_step(data)}

        def after_episode(self):
            self.log("ended", 1, "sum")

    chatlearn.init(settings(tmp_path, num_episode=2))
    source, judge, agent = Source("source"), Judge("judge"), Agent("agent")
    flow = Environment(lambda b: agent.forward_step(source.forward_step(b), judge))
    Engine(flow).set_dataset([1, 2, 3, 4]).learn()
    assert [row["judge/asked"] for row in rows(tmp_path)] == [2, 2]  # two batches of two
    assert [row["agent/ended"] for row in rows(tmp_path)] == [1, 1]
