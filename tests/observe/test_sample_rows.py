"""Samples are valid JSON whatever a flow yields; read back by a parser that refuses what JSON does not have."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from chatlearn.observe.samples import sample_line

IDS = {"sample_id": 7, "group_id": 3, "weight_version": 2}


def _read(**columns: Any) -> dict[str, Any]:
    """The second of two rows, whose first one is like it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = sample_line(IDS, columns, 1)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    row = json.loads(line, parse_constant=refuse)
    assert list(row)[:3] == list(IDS)
    return row


def _value(value: Any) -> Any:
    return _read(column=[value, value])["column"]


def test_numbers_that_json_does_not_have_are_null_and_named_by_their_path() -> None:
    row = _read(
        rewards=torch.tensor([0.0, math.inf]),
        logprobs=torch.tensor([[1.0, 2.0], [-math.inf, 0.5]]),
        notes=[{}, {"score": {"x": math.nan}}],
        fine=[1.0, 2.0],
    )
    assert row["rewards"] is None
    assert row["logprobs"] == [None, 0.5]
    assert row["notes"] == {"score": {"x": None}}
    assert row["fine"] == 2.0
    assert row["non_finite"] == {"rewards": "inf", "logprobs.0": "-inf", "notes.score.x": "nan"}
    assert [float(text) for text in list(row["non_finite"].values())[:2]] == [math.inf, -math.inf]


def test_a_row_of_finite_numbers_names_none() -> None:
    assert _read(x=[1, 2]) == {**IDS, "x": 2}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1.5), 1.5),
        (np.float64(0.1), 0.1),
        (np.float16(0.5), 0.5),
        (np.int64(3), 3),
        (np.uint8(200), 200),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.arange(3), [0, 1, 2]),
        (np.array(2.5), 2.5),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor(True), True),
        (torch.tensor([0.5, 1.0], dtype=torch.bfloat16), [0.5, 1.0]),
        (torch.tensor(1 + 2j), "(1+2j)"),
        (torch.zeros(2, 3000), "torch.float32 [2, 3000]"),
        (torch.ones(2).to_sparse(), "torch.float32 without plain numbers"),
        (np.zeros(5000, dtype=np.int16), "int16 [5000]"),
        ({(1, 2): "pair", None: 0, True: 1}, {"(1, 2)": "pair", "None": 0, "True": 1}),
        ({1: "number", "1": "text"}, {"1": "number", "1_": "text"}),
        ((1, [np.float32(2.5)]), [1, [2.5]]),
        (b"a", "b'a'"),
        ({"only"}, "{'only'}"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        ("r\ud800", "r\ud800"),
        (2**70, 2**70),
        pytest.param(10**5000, hex(10**5000), id="huge"),
        (None, None),
    ],
)
def test_what_a_value_becomes(value: Any, expected: Any) -> None:
    found = _value(value)
    assert found == expected
    assert type(found) is type(expected)


def test_a_value_that_holds_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert _value(loop)[0] == 1
    assert "[...]" in str(_value(loop))


def test_an_object_that_can_not_be_written_is_named() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert _value(Shy()) == "<Shy>"


def test_ids_win_over_columns_of_the_same_name() -> None:
    row = _read(
        sample_id=torch.tensor([100, 101]), sample_id_=[5, 6], group_id=["mine", "yours"], non_finite=["no", "yes"]
    )
    assert {key: row[key] for key in IDS} == IDS
    assert (row["sample_id_"], row["sample_id__"]) == (101, 6)
    assert (row["group_id_"], row["non_finite_"]) == ("yours", "yes")


def test_token_fields_hold_the_response_only() -> None:
    row = _read(
        tokens=torch.tensor([[1, 2, 3], [4, 5, 6]]),
        response_mask=torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]),
        attention_mask=torch.ones(2, 3),
        other=torch.tensor([[1, 2], [3, 4]]),
        nested={"flag": torch.tensor([True, False]), "none": None},
    )
    assert row == {**IDS, "length": 2, "tokens": [5, 6], "other": [3, 4], "nested": {"flag": False, "none": None}}
