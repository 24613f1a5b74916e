"""Flows and modules that cannot run are refused, with an error that says what, where and how to fix it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import toys
from bad_input_cases import Echo, engine_of, here, refused

from chatlearn import Engine, Environment, Evaluator, FlowError, MissingStepError, ModuleError, Trainer


def test_a_flow_that_branches_on_data() -> None:
    policy = toys.Policy("policy")

    def flow(batch: Any) -> Any:
        out = policy.forward_step(batch)
        if out["action"].mean() > 0:
            return out
        return policy.eval_step(out)

    with pytest.raises(FlowError) as caught:
        Environment(flow)
    for word in (here(flow, "if out"), "truth value", "policy.forward_step", "@chatlearn.step", "configuration"):
        assert word in str(caught.value)


@pytest.mark.parametrize("executor", [Environment, Trainer, Evaluator])
def test_a_module_without_the_step(executor: Any) -> None:
    module = Echo("echo")
    with pytest.raises(MissingStepError) as caught:
        executor(lambda batch: module.eval_step(batch))
    for word in ("Echo (module 'echo') has no eval_step", "def eval_step(self, data, …)", "forward_step, train_step"):
        assert word in str(caught.value)


@pytest.mark.parametrize("executor", [Environment, Evaluator])
def test_training_outside_of_a_trainer(executor: Any) -> None:
    module = Echo("echo")
    with pytest.raises(FlowError, match=r"test_bad_flows\.py:\d+: echo\.train_step.*Trainer"):
        executor(lambda batch: module.train_step(batch))


def test_two_modules_of_one_name(tmp_path: Path) -> None:
    source = inspect.getsourcefile(engine_of)
    words = ("two modules are called 'policy'", "Echo and Policy", "models.<name>", "rename one", f"{source}:")
    refused(engine_of(Echo("policy"), toys.Policy("policy")), ModuleError, *words, folder=tmp_path)


@pytest.mark.parametrize("name", ["", " a", "a/b", "a.b", "a,b", None, 3])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(ModuleError, match=r"Echo: a module's name is .*models\.<name>"):
        Echo(name)


def test_an_environment_that_yields_nothing_to_its_trainer(tmp_path: Path) -> None:
    one, two = Echo("one"), Echo("two")

    def env_flow(batch: Any) -> None:
        one.forward_step(batch)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: two.train_step(batch))).set_dataset([1])
    refused(engine, FlowError, "env_flow returns nothing", here(env_flow, "def "), "return ", folder=tmp_path)


def test_setting_an_attribute_after_the_engine_took_the_module() -> None:
    module = Echo("echo")
    module.before = 1  # type: ignore[attr-defined]
    engine_of(module).learn()
    with pytest.raises(ModuleError, match=r"echo\.scale is set after an Engine took the module.*models\.echo\.args"):
        module.scale = 2  # type: ignore[attr-defined]
