"""The reward contract: what a function is given, and what is refused of what it returns."""

from __future__ import annotations

import functools
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from chatlearn.errors import ConfigError, DataError
from chatlearn.rewards import find_failing, resolve, score

PROMPTS = ["p0", "p1", "p2"]
COMPLETIONS = ["a", "bb", "ccc"]


def lengths(prompts, completions, **columns):
    return [len(text) for text in completions]


def returning(value):
    return lambda prompts, completions: value


def test_values_become_floats_and_none_stays():
    result = score(returning([1, None, np.float32(0.5)]), PROMPTS, COMPLETIONS)
    assert result == [1.0, None, 0.5]
    assert [type(value) for value in result] == [float, type(None), float]


@pytest.mark.parametrize(
    "value",
    [
        (1, 2, 3),
        np.array([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0]),
        [torch.tensor(1), torch.tensor(2), torch.tensor(3)],
        np.array([1, 2, 3], dtype=object),
    ],
)
def test_sequences_arrays_and_tensors_are_accepted(value):
    assert score(returning(value), PROMPTS, COMPLETIONS) == [1.0, 2.0, 3.0]


def test_wrong_length_names_function_and_both_counts():
    def too_few(prompts, completions):
        return [1.0]

    with pytest.raises(DataError, match=r"too_few.*expected 3.*got 1"):
        score(too_few, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "0.5", [1.0], 1j, torch.ones(2)])
def test_a_value_that_is_no_finite_number_is_named_with_its_sample(bad):
    with pytest.raises(DataError, match=r"sample 1 got"):
        score(returning([0.0, bad, 0.0]), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("bad", [None, 1.0, "abc", {0: 1}, torch.ones(3, 1), np.float64(1), (x for x in "abc")])
def test_a_result_that_is_no_list_is_refused(bad):
    with pytest.raises(DataError, match="expected a list"):
        score(returning(bad), PROMPTS, COMPLETIONS)


def test_only_the_columns_of_the_signature_are_passed():
    def fn(prompts, completions, answer, *, weight=2.0):
        assert (prompts, completions, answer) == (PROMPTS, COMPLETIONS, ["x", "y", "z"])
        return [weight] * 3

    assert score(fn, PROMPTS, COMPLETIONS, {"answer": ["x", "y", "z"], "other": [0, 0, 0]}) == [2.0] * 3


def test_all_columns_are_passed_to_kwargs():
    seen = {}

    def fn(prompts, completions, **columns):
        seen.update(columns)
        return [0, 0, 0]

    score(fn, PROMPTS, COMPLETIONS, {"a": [1, 2, 3], "b": [4, 5, 6], "prompts": ["not", "these", "ones"]})
    assert seen == {"a": [1, 2, 3], "b": [4, 5, 6]}


def test_the_first_two_arguments_may_have_any_name():
    """A column of the same name as the first argument doesn't collide with it."""

    def fn(questions, answers):
        return [len(text) for text in answers]

    assert score(fn, PROMPTS, COMPLETIONS, {"questions": [0, 0, 0], "answers": ["", "", ""]}) == [1, 2, 3]


def test_methods_partials_and_callable_objects():
    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, prompts, completions, answer):
            return [self.factor * len(text) for text in answer]

        method = __call__

    columns = {"answer": ["", "x", "xx"]}
    assert score(Scaled(3), PROMPTS, COMPLETIONS, columns) == [0, 3, 6]
    assert score(Scaled(3).method, PROMPTS, COMPLETIONS, columns) == [0, 3, 6]

    def constant(prompts, completions, value):
        return [value] * 3

    assert score(functools.partial(constant, value=4), PROMPTS, COMPLETIONS, columns) == [4, 4, 4]


def test_a_missing_column_is_named_with_those_there():
    def needs(prompts, completions, entry):
        raise AssertionError("not called")

    with pytest.raises(DataError, match=r"needs.*no column 'entry'.*'answer'"):
        score(needs, PROMPTS, COMPLETIONS, {"answer": ["x", "y", "z"]})


def test_the_functions_own_exception_comes_through():
    def broken(prompts, completions):
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        score(broken, PROMPTS, COMPLETIONS)


def test_empty_batch():
    assert score(lengths, [], []) == []


def test_resolve_callable_and_paths(tmp_path, monkeypatch):
    (tmp_path / "some_rewards.py").write_text(
        "def one(prompts, completions): return [1.0] * len(prompts)\n"
        "class Group:\n    inner = staticmethod(one)\n"
        "NUMBER = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve(lengths) is lengths
    assert score(resolve("some_rewards:one"), PROMPTS, COMPLETIONS) == [1.0] * 3
    assert resolve("some_rewards:Group.inner") is resolve("some_rewards:one")
    with pytest.raises(ConfigError, match="no attribute 'two'"):
        resolve("some_rewards:two")
    with pytest.raises(ConfigError, match=r"of type int.*can't be called"):
        resolve("some_rewards:NUMBER")


@pytest.mark.parametrize("path", ["some_rewards", "some_rewards.one", ":one", "some_rewards:", "", ".relative:one"])
def test_resolve_refuses_malformed_paths(path):
    with pytest.raises(ConfigError, match=r"package\.module:name"):
        resolve(path)


def test_resolve_refuses_other_objects():
    with pytest.raises(ConfigError, match="got 3"):
        resolve(3)


def test_resolve_names_a_module_that_is_absent():
    with pytest.raises(ConfigError, match=r"'no_such_module_anywhere'.*PYTHONPATH"):
        resolve("no_such_module_anywhere:fn")


def test_resolve_keeps_the_cause_inside_a_module(tmp_path, monkeypatch):
    (tmp_path / "half_broken_rewards.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="a_package_that_is_not_there"):
        resolve("half_broken_rewards:fn")


def test_import_stays_light():
    heavy = {"torch", "reasoning_gym", "transformers"}
    code = f"import sys, chatlearn.rewards; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_samples_are_named_as_the_caller_says():
    with pytest.raises(DataError, match="the third one got 'x'"):
        score(returning([0, 0, "x"]), PROMPTS, COMPLETIONS, names=["one", "two", "the third one"])


def test_the_first_sample_that_raises_alone_is_found_with_its_own_columns():
    def divide(prompts, completions, answer, nested):
        assert [len(part) for part in (prompts, completions, answer, nested["x"])] == [len(prompts)] * 4
        return [1 / number for number in answer]

    columns = {"answer": torch.tensor([1.0, 2.0, 4.0]).tolist(), "nested": {"x": torch.ones(3, 2)}}
    columns["answer"][1] = 0
    index, error = find_failing(divide, PROMPTS, COMPLETIONS, columns)
    assert index == 1
    assert isinstance(error, ZeroDivisionError)


def test_none_is_found_where_only_the_batch_raises_or_the_time_is_up():
    calls = []

    def at_most_two(prompts, completions):
        calls.append(len(prompts))
        if len(prompts) > 2:
            raise ValueError("too many")
        return [0.0] * len(prompts)

    assert find_failing(at_most_two, PROMPTS, COMPLETIONS, {}) is None
    assert calls == [1, 1, 1]
    assert find_failing(at_most_two, PROMPTS, COMPLETIONS, {}, max_seconds=-1) is None
    assert calls == [1, 1, 1]


@pytest.mark.parametrize(
    ("value", "words"),
    [(1e300, r"1e\+300"), (-1e39, r"-1e\+39"), (10**400, "0x"), (-(10**400), "-0x"), (Fraction(10**50, 3), "Fraction")],
)
def test_a_number_that_float32_can_not_hold_is_refused_with_its_sample(value, words):
    with pytest.raises(DataError, match=f"sample 1 got {words}.*finite number, or None.*float32, so up to 3.4e38"):
        score(lambda prompts, completions: [0.0, value], ["p"] * 2, ["c"] * 2)


def test_the_largest_numbers_of_float32_are_rewards():
    largest = float(np.finfo(np.float32).max)
    assert score(lambda prompts, completions: [largest, -largest], ["p"] * 2, ["c"] * 2) == [largest, -largest]
