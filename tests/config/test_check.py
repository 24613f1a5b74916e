from enum import Enum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from chatlearn.config import Config, check_args, check_models, load_config


class Optimizer(BaseModel):
    beta: float = Field(default=0.9, lt=1)


class Kind(Enum):
    FAST = "fast"
    SLOW = "slow"


class Args(BaseModel):
    path: str = Field(description="folder of the model")
    lr: Annotated[float, Field(gt=0)] = 1e-4
    optimizer: Optimizer = Optimizer()
    by_name: dict[str, Optimizer] = {}
    mode: Literal["a", "b"] = "a"
    kind: Kind = Kind.FAST
    either: int | str = 3
    sizes: list[int] = []
    text: str = Field(default="", max_length=3)
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


def problems_of(write, text, args_model: type[BaseModel] = Args) -> list[str]:
    lines = "".join(f"      {line}\n" for line in text.splitlines())
    config = load_config(write(f"models:\n  policy:\n    args:\n{lines}"))
    return [str(each) for each in check_args("policy", args_model, config)]


def test_good_args(write):
    assert problems_of(write, "path: x\nlr: 1e-3\noptimizer: {beta: 0.5}") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lrr: 1", "ppo.yaml:5  models.policy.args.lrr: unknown key; did you mean `lr`?"),
        ("lr: x", "ppo.yaml:5  models.policy.args.lr: expected a number > 0, got 'x'"),
        ("lr: 0", "models.policy.args.lr: expected a number > 0, got 0"),
        ("lr: x", "Fix: correct the value, or leave the key out to take the default, 0.0001."),
        (
            "optimizer:\n  beta: 2",
            "ppo.yaml:6  models.policy.args.optimizer.beta: expected a number < 1, got 2",
        ),
        (
            "optimizer:\n  betta: 2",
            "ppo.yaml:6  models.policy.args.optimizer.betta: unknown key; did you mean `beta`?",
        ),
        ("optimizer: 3", "models.policy.args.optimizer: expected a mapping, got 3"),
        ("by_name: {x: {beta: 2}}", "models.policy.args.by_name.x.beta: expected a number < 1, got 2"),
        ("mode: c", "models.policy.args.mode: expected one of `a`, `b`, got 'c'"),
        ("kind: c", "models.policy.args.kind: expected one of `fast`, `slow`, got 'c'"),
        ("either: [1]", "models.policy.args.either: expected an integer or text, got a list"),
        ("sizes:\n- 1\n- x", "ppo.yaml:5  models.policy.args.sizes.1: expected an integer, got 'x'"),
        (
            "text: abcd",
            "models.policy.args.text: expected string should have at most 3 characters, got 'abcd'",
        ),
        ("even: 3", "models.policy.args.even: must be even; got 3"),
    ],
)
def test_bad_args(write, line, words):
    found = problems_of(write, "path: x\n" + line)
    assert len(found) == 1
    assert words in found[0]


def test_missing_argument(write):
    (found,) = problems_of(write, "lr: 1")
    assert "ppo.yaml:3  models.policy.args.path: missing; expected text (folder of the model)" in found
    assert "add `path: …` under models.policy.args" in found


def test_missing_argument_without_a_file():
    (problem,) = check_args("policy", Args, Config())
    assert (problem.where, problem.key) == ("defaults", "models.policy.args.path")


def test_whole_model_check(write):
    class Pair(BaseModel):
        low: int = 0
        high: int = 0

        @model_validator(mode="after")
        def _ordered(self):
            assert self.low <= self.high, "low must not be above high"
            return self

    (found,) = problems_of(write, "low: 3", Pair)
    assert "ppo.yaml:3  models.policy.args: low must not be above high" in found


def test_a_model_may_allow_more_keys(write):
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")
        lr: float = 0

    assert problems_of(write, "lrr: 1", Open) == []
    assert "did you mean `lr`?" in problems_of(write, "lrr: 1", Closed)[0]


def test_no_args_model():
    assert check_args("policy", None, Config(models={"policy": {"args": {"anything": 1}}})) == []


def test_models_match(write):
    config = load_config(write("models:\n  policy:\n  value:\n"))
    assert check_models(config, ["policy", "value"]) == ([], [])
    assert check_models(Config(), ["anything"]) == ([], [])


def test_module_without_an_entry(write):
    config = load_config(write("runtime:\nmodels:\n  polcy:\n  extra:\n"))
    problems, notes = check_models(config, ["policy", "zzz"])
    assert [each.where for each in problems] == ["ppo.yaml:2", "ppo.yaml:2"]
    assert "module `policy` has no entry under models" in problems[0].message
    assert "`polcy`" in problems[0].message
    assert problems[1].fix == "add `zzz:` under models"
    assert notes == [
        "ppo.yaml:3  models.polcy: no flow uses a module of this name",
        "ppo.yaml:4  models.extra: no flow uses a module of this name",
    ]
