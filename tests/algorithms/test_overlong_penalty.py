"""The overlong penalty against DAPO's eq. 13 in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.algorithms.lengths import overlong_penalty


def penalty(length: int, max_length: int, buffer: int) -> float:
    if length <= max_length - buffer:
        return 0
    if length <= max_length:
        return ((max_length - buffer) - length) / buffer
    return -1


@pytest.mark.parametrize(
    ("length", "max_length", "buffer", "expected"),
    [
        (0, 100, 20, 0),
        (80, 100, 20, 0),
        (81, 100, 20, -0.05),
        (90, 100, 20, -0.5),
        (99, 100, 20, -0.95),
        (100, 100, 20, -1),
        (500, 100, 20, -1),
        (16384, 20480, 4096, 0),
        (17408, 20480, 4096, -0.25),
        (20480, 20480, 4096, -1),
        (4, 8, 8, -0.5),
        (8, 8, 1, -1),
        (7, 8, 1, 0),
    ],
)
def test_by_hand(length: int, max_length: int, buffer: int, expected: float) -> None:
    result = overlong_penalty(torch.tensor([length]), max_length=max_length, buffer=buffer)
    assert result.tolist() == pytest.approx([expected])


@given(st.lists(st.integers(0, 300), max_size=5), st.integers(1, 200), st.data())
def test_matches_the_formula(lengths: list[int], max_length: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(1, max_length))
    result = overlong_penalty(torch.tensor(lengths, dtype=torch.int64), max_length=max_length, buffer=buffer)
    assert result.tolist() == pytest.approx([penalty(length, max_length, buffer) for length in lengths])
    assert result.dtype == torch.float32


def test_a_longer_response_never_gets_more() -> None:
    result = overlong_penalty(torch.arange(50), max_length=40, buffer=15)
    assert (result.diff() <= 0).all()
    assert (result[0].item(), result[-1].item()) == (0, -1)


def test_float64_lengths_give_float64() -> None:
    assert overlong_penalty(torch.tensor([90.0], dtype=torch.float64), max_length=100, buffer=20).dtype == torch.float64


@pytest.mark.parametrize(("max_length", "buffer"), [(100, 0), (100, -1), (100, 101), (0, 0)])
def test_a_buffer_that_does_not_fit_is_refused(max_length: int, buffer: int) -> None:
    message = rf"buffer must lie in 1 \.\. max_length, got buffer {buffer} and max_length {max_length}"
    with pytest.raises(ValueError, match=message):
        overlong_penalty(torch.zeros(1), max_length=max_length, buffer=buffer)
