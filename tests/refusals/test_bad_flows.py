"""Variants of flows and modules that cannot run. Every kind once: ``tests/bad_inputs.py``."""

from __future__ import annotations

from typing import Any

import pytest
from bad_input_areas.program import Echo

from chatlearn import Evaluator, FlowError, MissingStepError, ModuleError, Trainer


@pytest.mark.parametrize("executor", [Trainer, Evaluator])
def test_a_module_without_the_step(executor: Any) -> None:
    module = Echo("echo")
    with pytest.raises(MissingStepError, match=r"Echo \(module 'echo'\) has no eval_step"):
        executor(lambda batch: module.eval_step(batch))


def test_training_in_an_evaluator() -> None:
    module = Echo("echo")
    with pytest.raises(FlowError, match=r"test_bad_flows\.py:\d+: echo\.train_step.*Trainer"):
        Evaluator(lambda batch: module.train_step(batch))


@pytest.mark.parametrize("name", ["", " a", "a/b", "a.b", "a,b", None, 3])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(ModuleError, match=r"Echo: a module's name is .*models\.<name>"):
        Echo(name)
