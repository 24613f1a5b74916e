"""Bad modules: names, attributes, declarations, weights and state, reward functions."""

from __future__ import annotations

from typing import Any

import torch
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, begin, engine_of, learn, module, train

import chatlearn
from chatlearn import (
    CheckpointError,
    ConfigError,
    Engine,
    Environment,
    ModuleError,
    StepError,
    SyncError,
    TorchModule,
    Trainer,
)
from chatlearn.data.padding import Padding
from chatlearn.modules.torch import RewardInference

CAUSES = Causes()
cause = CAUSES.cause

# -- Names and attributes ----------------------------------------------------------------------------------------------


@cause(
    ModuleError,
    says="Echo: a module's name is a non-empty string without '/', '\\', ',' or '.', got 'actor/critic'",
    at="got 'actor/critic'",
    fix="It names the section `models.<name>` of the configuration",
)
def bad_name() -> None:
    """A module's name is a path."""
    Echo("actor/critic")


@cause(
    ModuleError,
    says="Nameless has no name",
    at="Nameless",
    fix="Give the constructor a parameter `name`, or call super().__init__(name) in it",
)
def no_name() -> None:
    """A module has no name."""

    class Nameless(Echo):
        def __init__(self) -> None:
            self.scale = 2.0

    engine_of(Nameless()).learn()


@cause(ModuleError, says="two modules are called 'policy' (Echo and Echo)", at="train.py:2", fix="rename one")
def two_of_one_name() -> None:
    """Two modules have the same name."""
    policy, reference = Echo("policy"), Echo("policy")
    learn(lambda batch: reference.forward_step(policy.forward_step(batch)))


@cause(
    ModuleError,
    says="policy.scale is set after an Engine took the module",
    at="policy.scale",
    fix="pass the value to the constructor, put it under `models.policy.args`, or set it in setup()",
)
def late_attribute() -> None:
    """A program sets an attribute of a module that an engine has."""
    policy: Any = Echo("policy")
    engine = engine_of(policy)
    policy.scale = 2.0
    engine.learn()


@cause(
    ModuleError,
    says="@step(expands=0)",
    at="expands=0",
    fix="give the number of rows that one becomes, or True for any",
)
def expands_to_nothing() -> None:
    """A step is declared to make no rows of one."""

    class Agent(Echo):
        @chatlearn.step(expands=0)
        def play(self, data: dict[str, Any]) -> dict[str, Any]:
            return data


@cause(
    ModuleError,
    says="a step expands or filters",
    at="@step",
    fix="expands=True allows no rows for some input rows too",
)
def expands_and_filters() -> None:
    """A step is declared both to expand and to filter."""

    class Agent(Echo):
        @chatlearn.step(expands=2, filters=True)
        def play(self, data: dict[str, Any]) -> dict[str, Any]:
            return data


# -- Declarations ------------------------------------------------------------------------------------------------------


@cause(
    ModuleError,
    says="policy and reward have different padding rules for 'tokens'",
    at="Padding(value=0, side='left')",
    fix="make them equal, or leave one out",
)
def two_padding_rules() -> None:
    """Two modules pad a key differently."""
    left, right = Padding(0, "left"), Padding(0, "right")
    engine_of(module("policy", padding={"tokens": left}), module("reward", padding={"tokens": right})).learn()


@cause(
    ModuleError,
    says="policy: the padding of 'tokens' is 'left'",
    at="policy",
    fix='Give a rule such as padding = {"tokens": Padding(0, "left")}',
)
def no_padding_rule() -> None:
    """A padding rule is no rule."""
    engine_of(module("policy", padding={"tokens": "left"})).learn()


# -- Weights and state -------------------------------------------------------------------------------------------------


class Linear(Echo):
    """A module with a linear model, or with none."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name)
        self.size = size

    def setup(self) -> None:
        self.model = torch.nn.Linear(self.size, 1) if self.size else None


def synced(trained: int, rollout: int) -> None:
    """A sync between models of these sizes."""
    source, destination = Linear("learner", trained), Linear("policy", rollout)
    environment = Environment(lambda batch: destination.forward_step(batch))
    engine = Engine(environment, Trainer(lambda batch: source.train_step(batch))).set_dataset(["a"])
    engine.set_parameter_sync(source, destination).learn()


@cause(
    SyncError,
    says="The weights of learner do not fit policy",
    at="weight is [1, 2] in learner and [1, 3] in policy",
    fix="Build both from the same model folder or configuration",
)
def unequal_weights() -> None:
    """The weights of two modules that are to be kept in step differ in shape."""
    synced(2, 3)


@cause(
    SyncError,
    says="policy has no parameters in `self.model`, but learner has 2 tensors",
    at="learner -> policy",
    fix="Set `self.model` to a torch.nn.Module in policy.setup(), or drop the set_parameter_sync of this pair",
)
def no_weights() -> None:
    """A module that is to be kept in step has no weights."""
    synced(2, 0)


@cause(
    CheckpointError,
    says="schedule is builtin_function_or_method, which a checkpoint can't hold",
    at="learner: schedule",
    fix="Let state_dict() return tensors, arrays, numbers, strings, and lists, tuples and dicts of these",
)
def state_that_cannot_be_saved() -> None:
    """The state of a module holds something that no file can hold."""
    begin(save_episode_interval=1)
    learner = module("learner", state_dict=lambda self: {"schedule": len})
    train(lambda batch: learner.train_step(batch))


@cause(
    ModuleError,
    says="setup() made no `self.model`",
    at="policy.export",
    fix="Make one, or take policy off runtime.export",
)
def export_without_a_model() -> None:
    """A module without a model is to be exported."""

    class Policy(TorchModule):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            return data

    begin(export="policy")
    engine_of(Policy("policy")).learn()


# -- Reward functions --------------------------------------------------------------------------------------------------

AT_REWARD = "reward[0].forward_step, rank 0, episode 1, batch 0"


def rewarded(reward: Any) -> None:
    """A flow that ends with a reward function, which stands in ``my_rewards.py``."""

    def responses(self: Echo, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "response": data["prompt"], "finished": torch.ones(4, dtype=torch.bool)}

    if callable(reward):
        reward.__module__, reward.__qualname__ = "my_rewards", reward.__name__
    engine_of(module("policy", forward_step=responses), RewardInference("reward", reward)).learn()


@cause(
    ConfigError,
    says="module 'my_rewards' can't be imported",
    at="reward function 'my_rewards:length'",
    fix="Check the spelling, and that the module's folder is on PYTHONPATH or its package is installed",
)
def no_reward_module() -> None:
    """The module of a reward function isn't there."""
    rewarded("my_rewards:length")


@cause(
    StepError,
    says="expected 4 values, one per completion, got 1",
    at=("reward function my_rewards.length", AT_REWARD),
    fix="Return a value for each sample, in order; use None for one that can't be scored",
)
def too_few_rewards() -> None:
    """A reward function returns one number for the whole batch."""

    def length(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(sum(map(len, completions)))]

    rewarded(length)


@cause(
    StepError,
    says="sample 0 of the batch (id 0) got nan",
    at=("reward function my_rewards.ratio", AT_REWARD),
    fix="expected a finite number, or None if the sample can't be scored",
)
def reward_without_a_value() -> None:
    """A reward is not a number."""

    def ratio(prompts: list[str], completions: list[str]) -> list[float]:
        return [float("nan") for _ in completions]

    rewarded(ratio)


@cause(
    StepError,
    says="the batch has no column 'answer' (it has 'finished')",
    at=("reward function my_rewards.equal", AT_REWARD),
    fix="Add it to every sample of the data set, or give the argument a default",
)
def reward_without_a_column() -> None:
    """A reward function asks for a column that the data set does not have."""

    def equal(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        return [float(one == other) for one, other in zip(completions, answer, strict=True)]

    rewarded(equal)
