"""Padding rules of several modules."""

from __future__ import annotations

import pickle

import pytest

from chatlearn.data.padding import Padding, padding_rules
from chatlearn.errors import DataError, ModuleError


def test_rules_of_all_modules_in_one():
    left, right = Padding(0, "left"), Padding(-1.0)
    rules = padding_rules([("policy", {"tokens": left}), ("value", {"tokens": Padding(0, "left"), "a.b": right})])
    assert rules == {"tokens": left, "a.b": right}
    assert padding_rules([]) == {}
    assert pickle.loads(pickle.dumps(rules)) == rules


def test_two_rules_for_one_key():
    declared = [("policy", {"tokens": Padding(0, "left")}), ("reward", {}), ("value", {"tokens": Padding(0)})]
    with pytest.raises(ModuleError, match=r"policy and value have different padding rules for 'tokens'"):
        padding_rules(declared)


def test_what_is_no_rule():
    with pytest.raises(ModuleError, match=r"policy: the padding of 'tokens' is 0\. Give a rule"):
        padding_rules([("policy", {"tokens": 0})])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("value", "side", "words"),
    [(0, "middle", r"side='middle'.*'left' or 'right'"), ("0", "left", r"value='0'.*a number")],
)
def test_what_padding_can_not_be(value, side, words):
    with pytest.raises(DataError, match=words):
        Padding(value, side)
