"""Which prompts an episode is made of."""

from __future__ import annotations

import bdb
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data import sampler
from chatlearn.data.sampler import CustomSampler, MixedSampler, Sampler, make_sampler
from chatlearn.errors import DataError

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
        sampler._epochs.cache_clear()
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


def test_one_data_set_is_number_0():
    s = Sampler(seed=3, length=5, group_size=2)
    ids = s.ids(7, 20)
    assert s.picks(ids) == [(0, index) for index in s.indices(ids)]


# ------------------------------------------------------------------------------------------- several data sets

SETS = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)


def turns(s, count: int) -> list[tuple[int, int]]:
    return s.picks(s.ids(0, count))


@given(lengths=SETS, data=st.data())
def test_every_data_set_has_its_share_of_any_number_of_groups(lengths, data):
    """To within two groups, counted from the start."""
    number = st.integers(1, 50) | st.sampled_from([0.1, 0.25, 0.7, 1e-3])
    ratios = tuple(data.draw(st.lists(number, min_size=len(lengths), max_size=len(lengths))))
    count, seen = 120, Counter()
    whole = sum(Fraction(str(ratio)) for ratio in ratios)
    for number, (dataset, _) in enumerate(turns(MixedSampler(0, lengths, ratios), count), 1):
        seen[dataset] += 1
        for i, ratio in enumerate(ratios):
            assert abs(seen[i] - number * Fraction(str(ratio)) / whole) < 2


@given(seed=SEEDS, lengths=SETS, shuffle=st.booleans(), epochs=st.integers(1, 3))
def test_by_their_lengths_one_pass_over_one_is_one_pass_over_all(seed, lengths, shuffle, epochs):
    picks = turns(MixedSampler(seed, lengths, shuffle=shuffle), epochs * sum(lengths))
    everything = [(i, index) for i, length in enumerate(lengths) for index in range(length)]
    for start in range(0, len(picks), sum(lengths)):
        assert sorted(picks[start : start + sum(lengths)]) == everything


@given(seed=SEEDS, lengths=SETS, group=GROUPS, shuffle=st.booleans())
def test_each_data_set_walks_through_epochs_of_its_own(seed, lengths, group, shuffle):
    ratios = tuple(range(1, len(lengths) + 1))
    s = MixedSampler(seed, lengths, ratios, group, shuffle)
    picks = turns(s, 60 * group)
    assert all(len(set(picks[i : i + group])) == 1 for i in range(0, len(picks), group))
    for dataset, length in enumerate(lengths):
        indices = [index for number, index in picks[::group] if number == dataset]
        for start in range(0, len(indices) - length + 1, length):
            epoch = indices[start : start + length]
            assert sorted(epoch) == list(range(length))
            assert shuffle or epoch == list(range(length))


@given(lengths=SETS, group=GROUPS, cuts=st.lists(st.integers(0, 15), max_size=6))
def test_any_way_of_drawing_from_several_gives_the_same_sequence(lengths, group, cuts):
    make = lambda: MixedSampler(5, lengths, None, group)  # noqa: E731
    whole, position, pieces = turns(make(), sum(cuts)), 0, []
    for count in cuts:
        sampler._epochs.cache_clear()
        pieces += make().picks(make().ids(position, count))
        position += count
    assert pieces == whole


def test_the_first_of_several_is_drawn_as_if_it_were_alone_and_the_others_differ():
    picks = turns(MixedSampler(7, (50, 50, 50), (1, 1, 1)), 150)
    orders = [[index for number, index in picks if number == i] for i in range(3)]
    assert orders[0] == draw(Sampler(7, 50), 0, 50)
    assert len({tuple(order) for order in orders}) == 3


def test_shares_of_7_to_3():
    """Worked out by hand: of the first n groups 0.7 n, rounded: 1 1 2 3 4 4 5 6 6 7."""
    datasets = [number for number, _ in turns(MixedSampler(0, (9, 9), (0.7, 0.3)), 10)]
    assert datasets == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]


def test_a_far_position_of_several_costs_no_walk():
    s = MixedSampler(0, (1_000, 10), (99, 1))
    assert Counter(number for number, _ in s.picks(s.ids(10**15, 100))) == {0: 99, 1: 1}


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((1,), r"data_ratio has 1 numbers for 2 data sets: \[1\]"),
        ((1, 0), "a share is a number above 0, got 0 in"),
        ((1, -1), "got -1"),
        ((1, float("nan")), "got nan"),
        ((1, float("inf")), "got inf"),
        ((1, "2"), "got '2'"),
    ],
)
def test_ratios_that_are_none(ratios, words):
    with pytest.raises(DataError, match=words):
        MixedSampler(0, (3, 4), ratios)


# --------------------------------------------------------------------------------------------- a user's function


def test_a_function_chooses_from_all_data_sets():
    seen = []

    def backwards(group, length, seed):
        seen.append((group, length, seed))
        return np.int64(length - 1 - group % length)

    s = CustomSampler(backwards, seed=4, lengths=(2, 3), group_size=2)
    assert s.picks(s.ids(2, 6)) == [(1, 1), (1, 1), (1, 0), (1, 0), (0, 1), (0, 1)]
    assert seen == [(1, 5, 4), (2, 5, 4), (3, 5, 4)]


@pytest.mark.parametrize("value", [5, -1, None, 1.0, True, "0"])
def test_what_is_no_index_is_named(value):
    def chosen(group, length, seed):
        return value

    s = CustomSampler(chosen, 0, (5,))
    with pytest.raises(DataError, match=rf"the sampler chosen gives {value!r} for group 3; .*from 0 to 4"):
        s.picks(s.ids(3, 1))


def test_a_function_that_raises():
    def chosen(group, length, seed):
        raise KeyError("x") if group else bdb.BdbQuit

    s = CustomSampler(chosen, 0, (5,))
    with pytest.raises(DataError, match=r"chosen\(group=3, length=5, seed=0\) raises KeyError") as caught:
        s.picks(s.ids(3, 1))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(bdb.BdbQuit):
        s.picks(s.ids(0, 1))


def test_make_sampler_takes_the_one_that_fits():
    def first(group, length, seed):
        return 0

    assert make_sampler(1, [4], group_size=2, shuffle=False) == Sampler(1, 4, 2, shuffle=False)
    assert make_sampler(1, [4, 5], ratios=[1, 2]) == MixedSampler(1, (4, 5), (1, 2))
    assert make_sampler(1, [4, 5], function=first, group_size=3) == CustomSampler(first, 1, (4, 5), 3)
    with pytest.raises(DataError, match="data_ratio has 2 numbers for 1 data sets"):
        make_sampler(1, [4], ratios=[1, 2])
    with pytest.raises(DataError, match="leave data_ratio out"):
        make_sampler(1, [4, 5], ratios=[1, 2], function=first)


def test_memory_stays_flat_over_epochs():
    """One permutation per data set is kept, whatever the epoch."""
    import tracemalloc

    s = MixedSampler(0, (20_000, 30_000))
    s.picks(s.ids(0, 1))
    tracemalloc.start()
    for epoch in range(1, 40):
        s.picks(s.ids(epoch * 50_000, 10))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 2 * 8 * 50_000
