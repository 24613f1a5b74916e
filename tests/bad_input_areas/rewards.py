"""Bad rewards: components that fit no one, functions that raise, answers and questions that aren't there."""

from __future__ import annotations

from typing import Any

import torch
import toys
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, engine_of, module

import chatlearn
from chatlearn import ConfigError, DataError, StepError
from chatlearn.modules.torch import RewardInference
from chatlearn.rewards import Questions

CAUSES = Causes()
cause = CAUSES.cause

AT_REWARD = "reward[0].forward_step, rank 0, episode 1, batch 0"
AT = "dict  models.reward.args.rewards"
FIRST = "models.reward.args.rewards.0"


def rewarded(*components: dict[str, Any], **args: Any) -> None:
    """A program whose reward is made of these components; samples have the column ``number``: 1, 0, 3, 0."""

    def responses(self: Echo, data: dict[str, Any]) -> dict[str, Any]:
        numbers = [1, 0, 3, 0]
        return {"prompt": data["prompt"], "response": list("abcd"), "finished": torch.ones(4) > 0, "number": numbers}

    settings = toys.settings("runs", sample_per_episode=8, generation_batch_size=4)
    settings["models"] = {"policy": {}, "reward": {"args": {"rewards": list(components), **args}}}
    chatlearn.init(settings)
    engine_of(module("policy", forward_step=responses), RewardInference("reward")).learn()


def by_number(name: str = "odd", **more: Any) -> dict[str, Any]:
    """A component that is right."""
    return {"name": name, "column": "number", **more}


def divided(prompts: list[str], completions: list[str], number: list[int]) -> list[float]:
    """A reward function that raises for the second sample."""
    return [1 / each for each in number]


def for_the_batch(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward function that returns one number for all samples."""
    return [0.5]


def without_a_value(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward function that does not return numbers."""
    return [float("nan") for _ in completions]


for _function in (divided, for_the_batch, without_a_value):
    _function.__module__ = "my_rewards"


# -- Components in the configuration -----------------------------------------------------------------------------------


@cause(
    ConfigError,
    says="the component 'right' has no source of scores",
    at=f"{AT}.0",
    fix="give it one of function, reasoning_gym, model, column",
)
def no_source() -> None:
    """A component of a reward says nothing of where its scores come from."""
    rewarded({"name": "right"})


@cause(
    ConfigError,
    says="the component 'right' has function and column",
    at=f"{AT}.0",
    fix="give it one of function, reasoning_gym, model, column",
)
def two_sources() -> None:
    """A component of a reward has two sources."""
    rewarded({"name": "right", "function": "math", "column": "number"})


@cause(
    ConfigError,
    says="unknown key; did you mean `weight`?",
    at=f"{AT}.0.weights_",
    fix="write `weight`, or remove it",
)
def mistyped_weight() -> None:
    """A key of a component is mistyped."""
    rewarded(by_number(weights_=2))


@cause(ConfigError, says="two components have the name 'odd'", at=AT, fix="rename one")
def one_name_twice() -> None:
    """Two components of a reward have one name."""
    rewarded(by_number(), by_number())


@cause(ConfigError, says="all weights are 0, so nothing would be learned", at=AT, fix="give one component a weight")
def no_weight() -> None:
    """All components of a reward have weight 0."""
    rewarded(by_number(weight=0))


@cause(
    ConfigError,
    says="the first number has to be below the second",
    at=f"{AT}.0.clip",
    fix="write clip: [lowest, highest]",
)
def clip_upside_down() -> None:
    """The bounds of a component stand in the wrong order."""
    rewarded(by_number(clip=[1, -1]))


@cause(
    ConfigError,
    says="`reward` stands beside it",
    at=AT,
    fix="keep one; `reward` becomes a component with `function`",
)
def reward_and_rewards() -> None:
    """A reward has components and a function beside them."""
    rewarded(by_number(), reward="math")


@cause(
    ConfigError,
    says="no component has the name 'even'",
    at="dict  models.reward.args.accuracy_of",
    fix="write one of odd",
)
def accuracy_of_nobody() -> None:
    """`accuracy_of` names no component."""
    rewarded(by_number(), accuracy_of="even")


@cause(
    ConfigError,
    says="normalised rewards have no fixed scale",
    at="dict  models.reward.args.unfinished_reward",
    fix="set `unfinished` of the components instead",
)
def fixed_reward_on_no_scale() -> None:
    """A fixed reward stands beside normalised ones."""
    rewarded(by_number(), combine="normalize_then_sum", unfinished_reward=-1)


@cause(
    ConfigError,
    says="missing_model; give an existing model folder",
    at=f"{AT}.0.model.model_path",
    fix="give an existing model folder, or a name on the Hub",
)
def no_reward_model() -> None:
    """The folder of a learned reward isn't there."""
    rewarded({"name": "taste", "model": {"model_path": "./missing_model"}})


# -- What a component names --------------------------------------------------------------------------------------------


@cause(
    ConfigError,
    says="there is no reward 'mth'; did you mean 'math'?",
    at=("reward component 'right'", FIRST),
    fix="a function of your own is named by its import path, 'package.module:name'",
)
def no_such_reward() -> None:
    """A short name of a reward is mistyped."""
    rewarded({"name": "right", "function": "mth"})


@cause(
    ConfigError,
    says="has no keyword argument 'ignorecase'; did you mean 'ignore_case'?",
    at=("reward component 'right'", FIRST),
    fix="It has ignore_case, whitespace, column",
)
def no_such_argument() -> None:
    """A keyword argument of a reward is mistyped."""
    rewarded({"name": "right", "function": "exact_match", "kwargs": {"ignorecase": True}})


@cause(
    ConfigError,
    says="pattern '<answer>(' is no regular expression",
    at=("reward component 'form'", FIRST),
    fix="In YAML, put it between single quotes",
)
def bad_pattern() -> None:
    """The pattern of a format reward is no regular expression."""
    rewarded({"name": "form", "function": "format", "kwargs": {"pattern": "<answer>("}})


@cause(
    ConfigError,
    says="reasoning-gym has no data set 'spell_backwards'",
    at=("reward component 'task'", FIRST),
    fix="Did you mean 'spell_backward'?",
)
def no_such_data_set() -> None:
    """A data set of reasoning-gym is mistyped."""
    rewarded({"name": "task", "reasoning_gym": "spell_backwards"})


# -- What a component returns ------------------------------------------------------------------------------------------


@cause(
    StepError,
    says="my_rewards.divided raises ZeroDivisionError: division by zero",
    at=(
        "reward component 'share'",
        FIRST,
        "first for sample 1 of the batch (id 1), whose completion is 'b'",
        AT_REWARD,
    ),
    fix="Let it return None for a sample that it can't score",
)
def function_that_raises() -> None:
    """A reward function raises for one of the samples."""
    rewarded({"name": "share", "function": f"{__name__}:divided"})


@cause(
    StepError,
    says="expected 4 values, one per completion, got 1",
    at=("reward component 'mean'", "models.reward.args.rewards.1", "my_rewards.for_the_batch", AT_REWARD),
    fix="use None for one that can't be scored",
)
def component_with_one_value() -> None:
    """A component returns one number for the whole batch."""
    rewarded(by_number(), {"name": "mean", "function": f"{__name__}:for_the_batch"})


@cause(
    StepError,
    says="sample 0 of the batch (id 0) got nan",
    at=("reward component 'ratio'", FIRST, AT_REWARD),
    fix="expected a finite number, or None if the sample can't be scored",
)
def component_without_a_value() -> None:
    """A component gives a sample NaN."""
    rewarded({"name": "ratio", "function": f"{__name__}:without_a_value"})


@cause(
    StepError,
    says="the batch has no column 'numbers' (it has 'finished', 'number', 'prompt', 'response')",
    at=("reward component 'odd'", FIRST, AT_REWARD),
    fix="Let an earlier step of the flow write it, or add it to every sample of the data set",
)
def column_of_nobody() -> None:
    """A component takes its scores from a column that isn't there."""
    rewarded({"name": "odd", "column": "numbers"})


@cause(
    StepError,
    says="MathReward reads the column 'answer', which the batch does not have (it has 'number')",
    at=("reward component 'right'", FIRST, AT_REWARD),
    fix="Add it to every sample of the data set, or set `column`",
)
def no_gold_answers() -> None:
    """A mathematics reward finds no answers in the data."""
    rewarded({"name": "right", "function": "math", "kwargs": {"verify": False}})


# -- Questions ---------------------------------------------------------------------------------------------------------


@cause(
    DataError,
    says="the template '{question}' can't be filled (KeyError: 'question')",
    at="question 0",
    fix="The row has the columns problem, answer",
)
def template_without_its_column() -> None:
    """Rows of questions lack the column that their template names."""
    Questions([{"problem": "1 + 1 =", "answer": "2"}])
