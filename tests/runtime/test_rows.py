"""Values in pieces: whichever rows are taken, and however often, it is as if all pieces had been merged first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data.collate import merge, select
from chatlearn.data.padding import Padding
from chatlearn.errors import DataError
from chatlearn.runtime.calls import Rows
from chatlearn.runtime.rows import gathered, leaves, selected, taken, whole

PADDING = {"tokens": Padding(-1, "left")}


def piece(first: int, num: int, width: int) -> dict[str, Any]:
    """``num`` rows that hold numbers from ``first`` on."""
    numbers = list(range(first, first + num))
    return {
        "tokens": torch.tensor(numbers).repeat(width, 1).T.reshape(num, width),
        "array": np.tile(np.array(numbers, dtype=np.int64), (width, 1)).T.reshape(num, width),
        "text": [f"row {number}" for number in numbers],
        "nested": {"x": torch.tensor(numbers, dtype=torch.float32)},
        "nothing": None,
    }


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, (torch.Tensor, np.ndarray)) else value


@st.composite
def values(draw: st.DrawFn) -> list[dict[str, Any]]:
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
    return [piece(10 * n, size, draw(st.integers(1, 3))) for n, size in enumerate(sizes)]


def some_rows(draw: st.DrawFn, count: int) -> Any:
    if draw(st.booleans()):
        start = draw(st.integers(0, count))
        return range(start, draw(st.integers(start, count)))
    return draw(st.lists(st.integers(0, count - 1), max_size=8))


@given(batches=values(), data=st.data())
def test_rows_of_pieces_are_rows_of_what_they_make_together(batches: list[dict[str, Any]], data: st.DataObject) -> None:
    together = merge(batches, PADDING)
    count = len(together["text"])
    value = tuple(piece for batch in batches for piece in whole(batch, len(batch["text"])))
    rows = some_rows(data.draw, count)
    expected = plain(select(together, rows))
    assert plain(gathered(taken(value, rows), PADDING)) == expected
    # as one source of several, of which the rows are asked for where it arrives
    assert plain(selected(Rows((value,), rows), PADDING)) == expected


@given(batches=values(), data=st.data())
def test_rows_may_be_taken_of_rows(batches: list[dict[str, Any]], data: st.DataObject) -> None:
    together = merge(batches, PADDING)
    value = tuple(piece for batch in batches for piece in whole(batch, len(batch["text"])))
    first = data.draw(st.lists(st.integers(0, len(together["text"]) - 1), min_size=1, max_size=8))
    second = some_rows(data.draw, len(first))
    expected = plain(select(select(together, first), second))
    assert plain(gathered(taken(taken(value, first), second), PADDING)) == expected


def test_sources_in_pieces_and_in_one_are_merged_and_later_ones_win() -> None:
    pieces = (Rows(({"x": [0, 1], "y": [0, 1]},), range(2)), Rows(({"x": [2], "y": [2]},), range(1)))
    plain_source = {"y": [10, 11, 12], "z": [20, 21, 22]}
    assert selected(Rows((pieces, plain_source), range(1, 3)), {}) == {"x": [1, 2], "y": [11, 12], "z": [21, 22]}
    assert selected(Rows((plain_source, pieces)), {}) == {"x": [0, 1, 2], "y": [0, 1, 2], "z": [20, 21, 22]}


def test_all_rows_of_a_batch_are_the_batch_itself() -> None:
    x = torch.arange(3)
    assert gathered(whole({"x": x}, 3), {})["x"] is x


def test_pieces_that_do_not_belong_together_are_refused_whichever_rows_are_taken() -> None:
    value = (*whole({"x": [1, 2]}, 2), *whole({"y": [3]}, 1))
    with pytest.raises(DataError, match="different keys: x, y"):
        gathered(taken(value, range(1)), {})


def test_every_future_of_a_source_is_found_once() -> None:
    a, b, c = object(), object(), object()
    value = (Rows((a,), range(2)), Rows((b,), range(1)), Rows((a,), range(1)))
    assert set(leaves((*value, Rows(((Rows((c,), range(1)),),), range(1))))) == {a, b, c}
    assert len(list(leaves(value))) == 2
    assert list(leaves(a)) == [a]
