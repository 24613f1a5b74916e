"""Lengths of samples and the order of an episode by length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data.lengths import length_of, reranked
from chatlearn.data.prompts import lengths_of
from chatlearn.errors import DataError


@pytest.mark.parametrize(
    ("sample", "length"),
    [
        ({"prompt": "abcd", "prompt_tokens": [1, 2]}, 2),
        ({"query": "abc"}, 3),
        ({"query": torch.ones(5)}, 5),
        ({"input_ids": np.ones((1, 4))}, 4),
        ({"prompt": None, "query": "ab"}, 2),
        ({"messages": [{"role": "user", "content": "abc"}, {"role": "user", "content": "de"}]}, 5),
        ({"number": 3, "scalar": torch.tensor(1), "text": "abcdef"}, 6),
        ("abc", 3),
        ([{"role": "user", "content": "abc"}], 3),
        ({"prompt": []}, 0),
    ],
)
def test_length_of(sample, length):
    assert length_of(sample) == length


@pytest.mark.parametrize(
    ("sample", "words"),
    [({"number": 3}, "keys number has no length"), (7, "of type int has no length"), ({"query": 7}, "'query' has no")],
)
def test_what_has_no_length(sample, words):
    with pytest.raises(DataError, match=words):
        length_of(sample)


@given(groups=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=12), data=st.data())
def test_groups_stay_together_and_descend(groups, data):
    lengths = [length for length, size in groups for _ in range(size)]
    group_ids = [10 + number for number, (_, size) in enumerate(groups) for _ in range(size)]
    order = reranked(lengths, group_ids)
    assert sorted(order) == list(range(len(lengths)))
    # Python's sort is stable: equal groups keep their order, and a group's samples theirs
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], group_ids[i]))


def test_a_group_is_as_long_as_its_longest_sample():
    assert reranked([1, 9, 5, 5], [0, 0, 1, 1]) == [0, 1, 2, 3]
    assert reranked([1, 4, 5, 5], [0, 0, 1, 1]) == [2, 3, 0, 1]


def test_batches_in_this_order_waste_least_padding():
    """Against all orders of six lengths in batches of two."""
    from itertools import permutations

    lengths = [3, 9, 1, 8, 2, 4]

    def padded(order):
        return sum(2 * max(lengths[i] for i in order[start : start + 2]) for start in range(0, 6, 2))

    assert padded(reranked(lengths, range(6))) == min(map(padded, permutations(range(6))))


def test_lengths_of_picks_read_each_sample_once():
    read = []

    class Data:
        def __getitem__(self, index):
            read.append(index)
            if index == 3:
                raise KeyError("gone")
            return {"prompt": "x" * index}

    assert lengths_of([Data()], [(0, 2), (0, 2), (0, 5), (0, 2)]) == [2, 2, 5, 2]
    assert read == [2, 5]
    with pytest.raises(DataError, match="sample 3 of the data set can't be read: KeyError"):
        lengths_of([Data()], [(0, 3)])
