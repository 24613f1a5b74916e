"""Ids beside a batch, and the number of its rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatlearn.types import SampleIds, num_rows

IDS = SampleIds((10, 11, 12, 13), (5, 5, 6, 6), 2)


def test_ids_of_some_rows():
    assert len(IDS) == 4
    assert IDS.slice(1, 3) == SampleIds((11, 12), (5, 6), 2)
    assert IDS.take([3, 0, 3]) == SampleIds((13, 10, 13), (6, 5, 6), 2)
    assert IDS.take([]) == SampleIds((), (), 2)


def test_ids_are_frozen_and_hashable():
    with pytest.raises(AttributeError):
        IDS.sample_ids = ()
    assert len({IDS, SampleIds((10, 11, 12, 13), (5, 5, 6, 6), 2)}) == 1


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        ({}, 0),
        ({"x": torch.ones(3, 2)}, 3),
        ({"x": np.ones((2, 5))}, 2),
        ({"x": ["a", "b", "c", "d"]}, 4),
        ({"nested": {"deep": {"x": [1, 2]}}, "y": [1, 2]}, 2),
    ],
)
def test_num_rows(batch, rows):
    assert num_rows(batch) == rows


@pytest.mark.parametrize(
    ("groups", "size", "expected"),
    [
        ([], 3, []),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3], [4]]),
        ([0, 0, 1, 1, 2, 2], 3, [[0, 1], [2, 3], [4, 5]]),
        ([0, 0, 0, 1, 1, 2], 3, [[0, 1, 2], [3, 4, 5]]),
        ([0, 0, 0, 0, 1, 2], 2, [[0, 1, 2, 3], [4, 5]]),
        ([0, 0, 0], 1, [[0, 1, 2]]),
        ([0, 1, 1, 1], 2, [[0], [1, 2, 3]]),
    ],
)
def test_pieces_end_where_a_group_ends(groups, size, expected):
    ids = SampleIds(tuple(range(len(groups))), tuple(groups))
    assert [list(piece) for piece in ids.pieces(size)] == expected
