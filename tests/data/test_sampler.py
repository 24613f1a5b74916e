"""Which prompts an episode is made of."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data import sampler
from chatlearn.data.sampler import Sampler

SEEDS = st.integers(0, 2**63 - 1)
LENGTHS = st.integers(1, 12)
GROUPS = st.integers(1, 4)


def draw(s: Sampler, position: int, count: int) -> list[int]:
    return s.indices(s.ids(position, count))


@given(seed=SEEDS, length=LENGTHS, group=GROUPS, epochs=st.integers(1, 4))
def test_every_epoch_is_a_permutation_of_the_prompts_each_drawn_group_size_times_in_a_row(seed, length, group, epochs):
    indices = draw(Sampler(seed, length, group), 0, epochs * length * group)
    for start in range(0, len(indices), length * group):
        epoch = indices[start : start + length * group]
        assert all(len(set(epoch[i : i + group])) == 1 for i in range(0, len(epoch), group))
        assert sorted(epoch[::group]) == list(range(length))


@given(seed=SEEDS, length=LENGTHS, group=GROUPS, cuts=st.lists(st.integers(0, 15), max_size=6))
def test_any_way_of_drawing_gives_the_same_sequence(seed, length, group, cuts):
    """Exact resume: each piece comes from a sampler of its own, with nothing remembered in the process."""
    whole, position, pieces = draw(Sampler(seed, length, group), 0, sum(cuts)), 0, []
    for count in cuts:
        sampler._permutation.cache_clear()
        pieces += draw(Sampler(seed, length, group), position, count)
        position += count
    assert pieces == whole


@given(length=LENGTHS, group=GROUPS, position=st.integers(0, 10**12), count=st.integers(0, 30))
def test_ids_are_positions_and_groups(length, group, position, count):
    ids = Sampler(0, length, group).ids(position, count, weight_version=5)
    assert ids.sample_ids == tuple(range(position, position + count))
    assert ids.group_ids == tuple(p // group for p in ids.sample_ids)
    assert ids.weight_version == 5
    assert all(size <= group for size in Counter(ids.group_ids).values())


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(draw(Sampler(seed, 50), epoch * 50, 50)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    assert tuple(range(50)) not in orders


def test_a_far_position_costs_no_walk_through_the_epochs_before():
    """Position 10^15 answers at once; the group's place in its epoch is a permutation's entry as anywhere else."""
    far = 10**15
    indices = draw(Sampler(3, 10), far, 10)
    assert sorted(indices) == list(range(10))


@pytest.mark.parametrize("group", [1, 3])
def test_without_shuffling_prompts_come_in_order(group):
    s = Sampler(seed=9, length=4, group_size=group, shuffle=False)
    assert draw(s, 0, 5 * group)[::group] == [0, 1, 2, 3, 0]


def test_the_draw_is_the_same_in_every_version():
    """A resumed run depends on it. Two epochs of numpy's ``Generator(Philox(key=[0, epoch])).permutation(8)``."""
    assert draw(Sampler(seed=0, length=8), 0, 16) == [5, 0, 6, 1, 7, 2, 4, 3, 2, 0, 4, 1, 7, 5, 3, 6]
