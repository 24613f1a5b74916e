"""Rewards by name, by import path and with keyword arguments."""

from __future__ import annotations

import pytest

from chatlearn.errors import ConfigError
from chatlearn.rewards import REWARDS, ExactMatch, build_reward, resolve, score


def weighted(prompts, completions, answer, weight=1.0):
    return [weight * (text == wanted) for text, wanted in zip(completions, answer, strict=True)]


class Suffix:
    def __init__(self, ending, *, points=1.0):
        self.ending, self.points = ending, points

    def __call__(self, prompts, completions):
        return [self.points * text.endswith(self.ending) for text in completions]


class NotCallable:
    pass


def test_a_short_name_is_a_class_that_gets_the_arguments():
    reward = build_reward("exact_match", {"ignore_case": True})
    assert isinstance(reward, ExactMatch)
    assert score(reward, ["?"], ["A"], {"answer": ["a"]}) == [1.0]


@pytest.mark.parametrize("name", REWARDS)
def test_every_short_name_leads_somewhere(name):
    assert callable(resolve(REWARDS[name]))


def test_a_function_gets_its_keyword_arguments_with_each_call():
    reward = build_reward("test_build:weighted", {"weight": 3})
    assert score(reward, ["?"] * 2, ["a", "b"], {"answer": ["a", "a"]}) == [3.0, 0.0]


def test_a_column_does_not_take_the_place_of_a_keyword_argument():
    reward = build_reward(weighted, {"weight": 3})
    assert score(reward, ["?"], ["a"], {"answer": ["a"], "weight": [100]}) == [3.0]


def test_a_class_by_path_or_itself_is_constructed():
    for spec in ("test_build:Suffix", Suffix):
        assert score(build_reward(spec, {"ending": ".", "points": 2}), ["?"] * 2, ["a.", "a"]) == [2.0, 0.0]


def test_functions_and_objects_without_arguments_are_taken_as_they_are():
    reward = Suffix("!")
    assert build_reward(reward) is reward
    assert build_reward(weighted) is weighted


@pytest.mark.parametrize(
    ("spec", "kwargs", "words"),
    [
        ("mth", {}, "there is no reward 'mth'; did you mean 'math'"),
        ("wordcount", {}, "There are math, exact_match.*named by its import path"),
        ("exact_match", {"ignorecase": True}, "has no keyword argument 'ignorecase'; did you mean 'ignore_case'"),
        ("test_build:weighted", {"wieght": 2}, "weighted has no keyword argument 'wieght'; did you mean 'weight'"),
        ("test_build:weighted", {"prompts": []}, "has no keyword argument 'prompts'"),
        ("test_build:Suffix", {}, "Suffix needs the argument 'ending'. Set it under `kwargs`"),
        ("test_build:NotCallable", {}, "makes objects that can't be called"),
        ("overlong_penalty", {"max_length": 4, "buffer": 9}, "buffer must lie in"),
        ("chatlearn.rewards.math:MathRewrd", {}, "has no attribute 'MathRewrd'. Did you mean 'MathReward'"),
    ],
)
def test_what_can_not_be_made_is_refused(spec, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        build_reward(spec, kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("overlong_penalty", {"max_length": "4", "buffer": 2}, r"OverlongPenalty.*max_length='4', buffer=2: TypeError"),
        ("length_penalty", {"per_unit": "x"}, r"LengthPenalty.*per_unit='x': TypeError"),
        ("length_penalty", {"per_unit": 1, "floor": "x"}, r"LengthPenalty.*floor='x': TypeError"),
        ("length_penalty", {"per_unit": 1, "floor": float("nan")}, "floor must be at most 0"),
        ("math", {"timeout_seconds": "5"}, r"MathReward.*timeout_seconds='5': TypeError"),
        ("format", {"pattern": 5}, r"RegexFormat.*pattern=5: TypeError"),
    ],
)
def test_keyword_arguments_of_the_wrong_type_are_named(name, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        build_reward(name, kwargs)
