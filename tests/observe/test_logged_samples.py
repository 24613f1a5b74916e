"""Which samples are logged, and what a row of a policy's experience holds."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch

from chatlearn.observe.samples import logged_rows, num_logged, sample_line, sample_lines
from chatlearn.types import SampleIds


@pytest.mark.parametrize(
    ("group_ids", "limit", "expected"),
    [
        ([0, 1, 2, 3], 2, 2),  # a group each
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], 6, 6),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], 8, 6),  # the third has no room
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], 9, 9),
        ([0, 0, 0, 1, 1, 1], 16, 6),
        ([0, 0, 0, 0], 2, 2),  # no group has room: a part of the first
        ([5, 5, 3, 3, 3], 4, 2),
        ([0, 0, 1, 1], 0, 0),
        ([0, 0, 1], "all", 3),
        ([], 16, 0),
        ([], "all", 0),
    ],
)
def test_whole_groups_are_logged(group_ids: list[int], limit: int | Literal["all"], expected: int) -> None:
    assert num_logged(group_ids, limit) == expected


@pytest.mark.parametrize(
    ("limit", "counts"), [(8, [4, 2, 0]), (4, [3, 0, 0]), (2, [2, 0, 0]), ("all", [4, 4, 4]), (0, [0, 0, 0])]
)
def test_groups_are_whole_across_batches_and_later_batches_are_left_alone(limit: Any, counts: list[int]) -> None:
    """Three batches of four samples, whose groups have three: 0 0 0 1 | 1 1 2 2 | 2 3 3 3."""
    parts = [SampleIds(tuple(part), tuple(n // 3 for n in part)) for part in (range(4), range(4, 8), range(8, 12))]
    assert logged_rows(parts, limit) == counts


def test_a_line_says_whose_values_it_holds() -> None:
    ids = SampleIds((4, 5), (1, 2), weight_version=7)
    lines = sample_lines({"square": torch.tensor([16, 25])}, ids, episode=3)
    assert [json.loads(line) for line in lines] == [
        {"sample_id": 4, "group_id": 1, "episode": 3, "weight_version": 7, "square": 16},
        {"sample_id": 5, "group_id": 2, "episode": 3, "weight_version": 7, "square": 25},
    ]


def _row(**columns: Any) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(sample_line({"sample_id": 1}, columns, 1), parse_constant=refuse)


MASK = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])


def test_a_row_of_grpo_holds_what_is_known_about_the_response() -> None:
    """Prompt and padding are left out of all token fields."""
    row = _row(
        prompt=["p", "q"],
        response=["one", "two"],
        tokens=torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]]),
        attention_mask=torch.ones(2, 4),
        response_mask=MASK,
        logprobs=torch.tensor([[0.0, -1.0, -2.0, -3.0], [0.0, -0.5, -0.25, 0.0]]),
        old_logprobs=torch.tensor([[0.0, -1.0, -2.0, -3.0], [0.0, -0.5, -0.125, 0.0]]),
        ref_logprobs=torch.zeros(2, 4),
        rewards=torch.tensor([0.0, 1.5]),
        reward_components={"exact": torch.tensor([0.0, 1.0]), "format": torch.tensor([1.0, math.nan])},
        advantages=torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, -0.75, -0.75, 0.0]]),
        finished=torch.tensor([True, False]),
    )
    assert row == {
        "sample_id": 1,
        "length": 2,
        "prompt": "q",
        "response": "two",
        "tokens": [6, 7],
        "logprobs": [-0.5, -0.25],
        "old_logprobs": [-0.5, -0.125],
        "ref_logprobs": [0.0, 0.0],
        "rewards": 1.5,
        "reward_components": {"exact": 1.0, "format": None},
        "advantages": -0.75,
        "finished": False,
        "non_finite": {"reward_components.format": "nan"},
    }


def test_advantages_that_differ_between_tokens_are_written_token_by_token() -> None:
    row = _row(
        response_mask=MASK,
        advantages=torch.tensor([[0.0, 1.0, 1.0, 1.0], [9.0, 0.5, 0.25, 9.0]]),
        values=torch.tensor([[0.0, 1.0, 1.0, 1.0], [9.0, 0.5, 0.5, 9.0]]),
    )
    assert row["advantages"] == [0.5, 0.25]
    assert row["values"] == [0.5, 0.5]  # only advantages are ever one number


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        (torch.tensor([[0.0] * 4, [0.0, math.nan, math.nan, 0.0]]), [None, None]),
        (torch.tensor([[0.0] * 4, [0.0, math.inf, math.inf, 0.0]]), None),
        (torch.tensor([1.0, 2.0]), 2.0),  # one per sample from the start
    ],
)
def test_odd_advantages_are_valid_json(advantages: torch.Tensor, expected: Any) -> None:
    assert _row(response_mask=MASK, advantages=advantages)["advantages"] == expected


def test_a_span_of_time_is_text() -> None:
    spans = np.array([3, 90], dtype="timedelta64[s]")
    assert json.loads(sample_line({}, {"waited": spans}, 1)) == {"waited": "90 seconds"}


def test_a_response_without_tokens_has_length_0() -> None:
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    row = _row(response_mask=mask, tokens=torch.tensor([[1, 2], [3, 4]]), advantages=torch.ones(2, 2))
    assert row == {"sample_id": 1, "length": 0, "tokens": [], "advantages": []}


def test_gaps_between_response_tokens_are_left_out() -> None:
    """What a tool answers stands between two parts of a response."""
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert _row(response_mask=mask, tokens=torch.tensor([[1, 2, 3], [4, 5, 6]])) == {
        "sample_id": 1,
        "length": 2,
        "tokens": [4, 6],
    }


def test_a_column_called_length_keeps_its_name() -> None:
    assert _row(response_mask=MASK, length=["short", "long"]) == {"sample_id": 1, "length": "long"}
