"""Who fills which parameter of a step."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.flow.signature import step_signature

RUN = {"iteration": 7, "train_info": {"episode": 1}, "is_eval": True}


@pytest.mark.parametrize(
    ("function", "data", "merges", "filled"),
    [
        (lambda self, data: 0, ("data",), True, set()),
        (lambda self, data, iteration=0: 0, ("data",), True, {"iteration"}),
        (lambda self, data, iteration: 0, ("data",), True, {"iteration"}),
        (lambda self, data, train_info: 0, ("data",), True, {"train_info"}),
        (lambda self, data, *, is_eval: 0, ("data",), True, {"is_eval"}),
        (lambda self, data, is_eval, iteration, train_info: 0, ("data",), True, set(RUN)),
        (lambda self, data, greedy=False: 0, ("data",), True, set()),
        (lambda self, first, second: 0, ("first", "second"), False, set()),
        (lambda self, first, iteration, second: 0, ("first", "second"), False, {"iteration"}),
        (lambda self, *data: 0, (), False, set()),
        (lambda self, data, **rest: 0, ("data",), True, set()),
        (lambda self, data, /, iteration=0: 0, ("data",), True, {"iteration"}),
    ],
)
def test_data_parameters_are_positional_without_default_and_the_run_fills_what_is_there(function, data, merges, filled):
    signature = step_signature(function)
    assert signature.data == data
    assert signature.merges == merges
    assert signature.run_parameters(RUN) == {name: RUN[name] for name in filled}


def test_decorators_that_wrap_are_looked_through():
    def plain(self, first, second, iteration=0):
        return 0

    @functools.wraps(plain)
    def wrapper(*args, **kwargs):
        return plain(*args, **kwargs)

    assert step_signature(wrapper) == step_signature(plain)


FUNCTIONS = {
    "plain": lambda self, a, b, c=3, *, k=4, l=5: (self, a, b, c, (), k, l),  # noqa: E741
    "positional only": lambda self, a, b, /, c=3, *, k=4, l=5: (self, a, b, c, (), k, l),  # noqa: E741
    "variadic": lambda self, a, b, c=3, *rest, k=4, l=5: (self, a, b, c, rest, k, l),  # noqa: E741
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@given(optional=st.dictionaries(st.sampled_from(["c", "k", "l"]), st.integers()))
def test_call_gives_every_named_argument_to_its_parameter(function, optional):
    """The expected value is Python's own binding of the same arguments, written out by hand."""
    result = step_signature(function).call(function, "me", {"b": 2, "a": 1, **optional})
    assert result == ("me", 1, 2, optional.get("c", 3), (), optional.get("k", 4), optional.get("l", 5))


def test_call_with_variadic_data():
    function = FUNCTIONS["variadic"]
    result = step_signature(function).call(function, "me", {"a": 1, "b": 2, "c": 9, "*0": "x", "*1": "y", "k": 0})
    assert result == ("me", 1, 2, 9, ("x", "y"), 0, 5)
