"""Two lines of a sample are the same only where they are written alike; the first difference of a field is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from chatlearn.observe.sample_differences import differences, only_described
from chatlearn.observe.samples import sample_line

LINE = {"sample_id": 3, "tokens": [5, 6, 7], "rewards": 0.5, "parts": {"exact": 1.0, "format": [0.0, 1.0]}}


def test_a_line_is_the_same_as_itself() -> None:
    assert differences(LINE, json.loads(json.dumps(LINE))) == {}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tokens": [5, 9, 8]}, "tokens[1] is 9, logged is 6"),
        ({"tokens": [5, 6]}, "tokens has 2 entries, logged are 3"),
        ({"tokens": "torch.int64 [5000]"}, 'tokens is "torch.int64 [5000]", logged is [5, 6, 7]'),
        ({"rewards": 0.5 + 2**-53}, "rewards is 0.5000000000000001, logged is 0.5"),
        ({"sample_id": 3.0}, "sample_id is 3.0, logged is 3"),
        ({"parts": {"exact": 1.0, "format": [-0.0, 1.0]}}, "parts[format][0] is -0.0, logged is 0.0"),
        ({"parts": {"exact": 1.0}}, "parts[format] is in the log only"),
        ({"more": None}, "more is not in the log"),
        ({"rewards": True}, "rewards is true, logged is 0.5"),
    ],
)
def test_the_first_difference_of_a_field_is_named(change: dict[str, Any], text: str) -> None:
    assert differences(LINE, {**LINE, **change}) == {next(iter(change)): text}


def test_every_field_that_differs_is_named() -> None:
    assert list(differences(LINE, {**LINE, "rewards": 1.0, "tokens": []})) == ["tokens", "rewards"]


def _line(*values: float) -> dict[str, Any]:
    return json.loads(sample_line({"sample_id": 0}, {"x": torch.tensor([values], dtype=torch.float64)}, 0))


def test_numbers_that_json_does_not_have_are_told_apart() -> None:
    nan, inf = float("nan"), float("inf")
    assert differences(_line(1.0, nan, inf), _line(1.0, nan, inf)) == {}
    assert differences(_line(1.0, nan, inf), _line(1.0, nan, -inf)) == {"x": "x[2] is -inf, logged is inf"}
    assert differences(_line(1.0, nan), _line(1.0, 2.0)) == {"x": "x[1] is 2.0, logged is nan"}


def test_neighbouring_numbers_of_32_bits_differ() -> None:
    one = torch.tensor(0.1)
    other = torch.nextafter(one, torch.tensor(1.0))
    found = [json.loads(sample_line({"sample_id": 0}, {"x": value[None]}, 0)) for value in (one, other)]
    assert list(differences(*found)) == ["x"]


def test_fields_that_are_only_described_are_known() -> None:
    columns = {"long": torch.zeros(1, 5000), "text": ["torch"], "short": torch.zeros(1, 3)}
    assert only_described(json.loads(sample_line({"sample_id": 0}, columns, 0))) == ["long"]
