"""Padding rules of several modules."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from chatlearn.data.collate import merge, pad
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


def test_a_number_that_no_dtype_holds():
    with pytest.raises(DataError, match="too large for any dtype"):
        Padding(10**400)


def test_a_key_of_a_rule_is_text():
    with pytest.raises(ModuleError, match=r"policy: the padding of 5: keys of batches are text"):
        padding_rules([("policy", {5: Padding(0)})])  # type: ignore[dict-item]


# -------------------------------------------------------------------------------------------- the range of a dtype

TOO_MUCH = [
    ("uint8", -1, "0 to 255"),
    ("uint8", 256, "0 to 255"),
    ("int8", -129, "-128 to 127"),
    ("int16", 10**6, "-32768 to 32767"),
    ("int32", 2**31, "-2147483648 to 2147483647"),
    ("int64", 2**63, "-9223372036854775808 to 9223372036854775807"),
    ("bool", 2, "0 to 1"),
    ("float16", 65520.0, "-65504.0 to 65504.0"),
    ("float32", 1e39, r"-3.4028234663852886e\+38 to 3.4028234663852886e\+38"),
    ("complex64", 1e39, r"-3.4028234663852886e\+38 to 3.4028234663852886e\+38"),
    ("int64", 1.5, "whole number"),
    ("bool", math.nan, "whole number"),
    ("uint8", math.inf, "whole number"),
]


def ones(library, dtype):
    """``[1, 1]`` and ``[1, 2]``."""
    if library == "torch":
        return [torch.ones(1, width, dtype=getattr(torch, dtype)) for width in (1, 2)]
    return [np.ones((1, width), dtype) for width in (1, 2)]


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize(("dtype", "value", "words"), TOO_MUCH)
def test_a_padding_value_beyond_the_dtype_is_named_with_key_and_dtype(library, dtype, value, words):
    narrow, wide = ones(library, dtype)
    with pytest.raises(DataError, match=rf"'a.x' is {dtype}, which can't hold the padding value .*{words}"):
        merge([{"a": {"x": narrow}}, {"a": {"x": wide}}], {"a.x": Padding(value)})


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 255),
        ("int8", -128),
        ("int64", 2**63 - 1),
        ("int64", -(2**63)),
        ("bool", 1),
        ("bool", False),
        ("int32", 7.0),
        ("float16", 65504.0),
        ("float32", -math.inf),
        ("float64", 1e39),
        ("complex64", 2.5),
        ("int16", np.int8(-3)),
    ],
)
def test_a_padding_value_at_the_edge_of_the_dtype_arrives_unchanged(library, dtype, value):
    narrow, wide = ones(library, dtype)
    merged = merge([{"x": narrow}, {"x": wide}], {"x": Padding(value, "left")})["x"]
    assert str(merged.dtype).removeprefix("torch.") == dtype
    assert merged.tolist() == [[value, 1], [1, 1]]


def test_a_dtype_without_infinity():
    parts = [{"x": torch.ones(1, width).to(torch.float8_e4m3fn)} for width in (1, 2)]
    with pytest.raises(DataError, match="'x' is float8_e4m3fn, which can't hold the padding value inf"):
        merge(parts, {"x": Padding(math.inf)})


def test_bfloat16_holds_what_float16_does_not():
    merged = merge(
        [{"x": torch.ones(1, 1, dtype=torch.bfloat16)}, {"x": torch.ones(1, 2, dtype=torch.bfloat16)}],
        {"x": Padding(2.0**100)},
    )["x"]
    assert merged.tolist() == [[1, 2.0**100], [1, 1]]


@pytest.mark.parametrize(("value", "words"), [(-1, "0 to 255"), (0.5, "whole number")])
def test_pad_refuses_what_the_dtype_can_not_hold(value, words):
    with pytest.raises(DataError, match=rf"pad\(\): the sequences is uint8, .*{words}"):
        pad([torch.ones(1, dtype=torch.uint8), torch.ones(2, dtype=torch.uint8)], value=value)
