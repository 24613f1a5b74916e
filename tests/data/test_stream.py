"""Experience turned into global batches."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data.collate import select
from chatlearn.data.stream import Experience, StreamDataset
from chatlearn.types import SampleIds

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)
GLOBAL = st.integers(1, 12)


def stream(sizes, global_batch_size, seed=11, group=1, unit=1):
    """Samples 100, 101, … in groups of a size, arriving in batches of these sizes."""
    dataset = StreamDataset(global_batch_size, lambda epoch: seed + epoch, shuffle_unit=unit)
    start = 100
    for size in sizes:
        ids = tuple(range(start, start + size))
        groups = tuple((i - 100) // group for i in ids)
        dataset.add(Experience(({"id": list(ids)},), SampleIds(ids, groups, 4)))
        start += size
    return dataset


def samples(batches):
    return [list(batch.ids.sample_ids) for batch in batches]


def rows(batch):
    """The samples that the pieces of a global batch stand for, read from the data itself."""
    found = []
    for (source,), chosen in batch.pieces:
        found += source["id"] if chosen is None else select(source, chosen)["id"]
    return found


@given(sizes=SIZES, size=GLOBAL, epoch=st.integers(0, 3))
def test_every_sample_comes_exactly_once_per_epoch_in_full_batches_but_for_the_last(sizes, size, epoch):
    dataset, count = stream(sizes, size), sum(sizes)
    batches = list(dataset.batches(epoch))
    assert [len(b.ids) for b in batches] == [size] * (count // size) + [count % size] * (count % size > 0)
    assert Counter(i for b in batches for i in b.ids.sample_ids) == Counter(range(100, 100 + count))


@given(sizes=SIZES, size=GLOBAL, epoch=st.integers(0, 2))
def test_ids_travel_with_their_rows(sizes, size, epoch):
    for batch in stream(sizes, size).batches(epoch):
        assert rows(batch) == list(batch.ids.sample_ids)
        assert batch.ids.group_ids == tuple(i - 100 for i in batch.ids.sample_ids)
        assert batch.ids.weight_version == 4


@given(sizes=SIZES, size=GLOBAL, epoch=st.integers(0, 2), data=st.data())
def test_the_composition_does_not_depend_on_how_experience_arrives(sizes, size, epoch, data):
    count = sum(sizes)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, count - 1)), max_size=4)) - {count})
    others = [b - a for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    first, second = stream(sizes, size), stream(others, size)
    assert [b.ids for b in first.batches(epoch)] == [b.ids for b in second.batches(epoch)]


@given(sizes=SIZES, size=GLOBAL)
def test_the_first_epoch_keeps_the_order_of_arrival(sizes, size):
    order = [i for b in stream(sizes, size).batches() for i in b.ids.sample_ids]
    assert order == list(range(100, 100 + sum(sizes)))


def test_later_epochs_have_orders_of_their_own_which_come_from_the_seed():
    def order(epoch, seed=11):
        return tuple(i for b in stream([40], 8, seed).batches(epoch) for i in b.ids.sample_ids)

    assert len({order(0), order(1), order(2), order(1, seed=50)}) == 4
    assert order(1) == order(1)


def test_the_ragged_ends_of_the_plan():
    """200 samples in batches of 16 and 7, global batches of 64: three full ones and a last one of 8."""
    dataset = stream([16, 7] * 8 + [16], 64)
    assert len(dataset) == 200
    for epoch in range(3):
        assert [len(b.ids) for b in dataset.batches(epoch)] == [64, 64, 64, 8]


def test_a_batch_that_is_used_whole_is_passed_on_by_reference():
    dataset = stream([4, 4], 4)
    assert [b.pieces for b in dataset.batches()] == [
        ((part.sources, None),) for part in dataset.experience
    ]  # fmt: skip


def test_neighbouring_rows_are_a_range_so_that_tensors_become_views():
    (first, second) = stream([6], 4).batches()
    assert [piece[1] for piece in (*first.pieces, *second.pieces)] == [range(4), range(4, 6)]


@pytest.mark.parametrize("epoch", [0, 1])
def test_no_experience_no_batch(epoch):
    assert list(StreamDataset(4).batches(epoch)) == []


@given(
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    group=st.integers(1, 5),
    size=GLOBAL,
    unit=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_no_batch_splits_a_group(groups, group, size, unit, epoch):
    sizes = [number * group for number in groups]
    batches = list(stream(sizes, size, group=group, unit=unit).batches(epoch))
    assert sorted(i for ids in samples(batches) for i in ids) == list(range(100, 100 + sum(sizes)))
    assert all(len(batch.ids) <= max(size, group) for batch in batches)
    owners = [number for batch in batches for number in set(batch.ids.group_ids)]
    assert len(owners) == len(set(owners))


def test_groups_of_unequal_size_fill_batches_as_far_as_they_fit():
    dataset = StreamDataset(6)
    groups = (0, 0, 0, 1, 1, 2, 2, 2, 2, 3)
    dataset.add(Experience(({"id": list(range(10))},), SampleIds(tuple(range(10)), groups)))
    assert samples(dataset.batches()) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_whole_micro_batches_are_shuffled_where_that_is_asked_for():
    dataset = stream([22], 8, unit=4)
    first = samples(dataset.batches(0))
    assert [len(ids) for ids in first] == [8, 8, 6]
    micro_batches = [ids[start : start + 4] for ids in first for start in range(0, len(ids), 4)]
    orders = set()
    for epoch in (1, 2, 3):
        later = samples(dataset.batches(epoch))
        assert [len(ids) for ids in later] == [8, 8, 6]
        cut = [ids[start : start + 4] for ids in later for start in range(0, len(ids), 4)]
        assert sorted(cut) == sorted(micro_batches)
        assert cut[-1] == [120, 121]
        orders.add(str(cut))
    assert len(orders) == 3


def test_micro_batches_that_share_a_group_stay_together():
    batches = samples(stream([24], 12, group=6, unit=4).batches(1))
    assert sorted(batches) == [list(range(100, 112)), list(range(112, 124))]
