"""Rows of batches as samples, and batches made of samples again."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from batch_cases import batches as any_batch
from batch_cases import episode, ids, merged, one_of_each, same
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data.padding import Padding
from chatlearn.data.replay import EpisodeBuffer, select
from chatlearn.data.samples import Sample, batches
from chatlearn.errors import DataError
from chatlearn.types import SampleIds, num_rows


def test_a_sample_is_a_row_of_its_batch():
    buffer = EpisodeBuffer(4, [(one_of_each(), ids(20, 3, version=7))])
    sample = buffer.samples[1]
    assert same(sample["tensor"], torch.tensor([2, 3], dtype=torch.bfloat16))
    assert same(sample["numbers"], torch.tensor(1 / 3, dtype=torch.float64))
    assert same(sample["array"], np.array([3, 4, 5], dtype=np.int16))
    assert sample["scores"] == np.float32(0.5)
    assert (sample["words"], sample["objects"], sample["texts"]) == ("b", [1, "x"], None)
    assert same(sample["ragged"], torch.tensor([0]))
    assert sample["notes"] == {"turn": 1, "by": ("user", 1)}
    assert sample["nested"]["x"].tolist() == [1.0]
    assert sample["nested"]["deep"] == {"y": 1, "none": None}
    assert sample["nothing"] is None
    assert (sample.sample_id, sample.group_id, sample.weight_version, sample.episode) == (21, 10, 7, 4)
    assert sample.rollout_id is None


def test_a_batch_with_every_kind_of_column_comes_back_bit_for_bit():
    batch = one_of_each()
    result, found = merged(select([EpisodeBuffer(0, [(batch, ids(6, 3, 5))])]))
    assert same(result, batch)
    assert result["words"].dtype == batch["words"].dtype
    assert found == ids(6, 3, 5)


@given(batch=any_batch(), data=st.data())
def test_any_batch_comes_back_bit_for_bit(batch, data):
    """In one piece, and in pieces that are joined again by indexing rows one by one."""
    rows = num_rows(batch)
    samples = select([EpisodeBuffer(0, [(batch, ids(0, rows))])])
    assert same(merged(samples)[0], batch)
    size = data.draw(st.integers(1, rows))
    pieces = list(batches(samples, size=size))
    assert [len(found) for _, found in pieces] == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    again = [sample for part, found in pieces for sample in EpisodeBuffer(0, [(part, found)]).samples]
    assert same(merged(again)[0], batch)


def test_values_of_other_widths_are_padded_by_the_rules_of_their_keys():
    parts = [
        ({"tokens": torch.tensor([[1, 2]]), "extra": {"mask": np.array([[1, 1]])}}, ids(0, 1)),
        ({"tokens": torch.tensor([[3, 4, 5]]), "extra": {"mask": np.array([[1, 1, 1]])}}, ids(1, 1)),
    ]
    samples = select([EpisodeBuffer(0, parts)])
    result, _ = merged(samples, {"tokens": Padding(-1, "left"), "extra.mask": Padding(9)})
    assert result["tokens"].tolist() == [[-1, 1, 2], [3, 4, 5]]
    assert result["extra"]["mask"].tolist() == [[1, 1, 9], [1, 1, 1]]
    assert merged(samples)[0]["tokens"].tolist() == [[1, 2, 0], [3, 4, 5]]


def test_a_batch_ends_where_other_weights_begin():
    """Nine samples of two versions in batches of four: 4 + 1 of the first version, then 4."""
    samples = select([episode(1, (5,)), episode(2, (4,))])
    found = [ids for _, ids in batches(samples, size=4)]
    assert [len(part) for part in found] == [4, 1, 4]
    assert [part.weight_version for part in found] == [1, 1, 2]
    assert [i for part in found for i in part.sample_ids] == [100, 101, 102, 103, 104, 200, 201, 202, 203]


def test_rollouts_travel_along():
    grown = SampleIds((3, 4), (0, 1), 2).expanded([0, 0, 1])
    plain = ids(9, 1, version=2)
    batch = {"x": [1, 2, 3]}
    samples = select([EpisodeBuffer(0, [(batch, grown), ({"x": [4]}, plain)])])
    assert [sample.rollout_id for sample in samples] == [3, 3, 4, None]
    assert merged(samples[:3])[1] == grown
    assert merged(samples)[1].rollout_ids == (3, 3, 4, 9)
    assert merged(samples[3:])[1] == plain


def test_batches_without_columns_or_rows():
    buffer = EpisodeBuffer(0, [({}, ids(0, 2)), ({}, ids(2, 0))])
    assert [dict(sample) for sample in buffer.samples] == [{}, {}]
    assert merged(buffer.samples) == ({}, ids(0, 2))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.copy(),
        lambda s: s | {},
        lambda s: {} | s,
        copy.copy,
        copy.deepcopy,
        lambda s: pickle.loads(pickle.dumps(s)),
    ],
)
def test_copies_of_a_sample_keep_its_ids(change):
    sample = select([episode(3)])[1]
    other = change(sample)
    assert type(other) is Sample
    assert other is not sample
    assert dict(other) == dict(sample)
    assert merged([other])[1] == ids(301, 1, version=3)


def test_a_changed_copy_leaves_the_sample_alone():
    sample = select([episode(3)])[1]
    other = sample | {"text": "new", "weight": 2.0}
    assert (other["text"], other["weight"]) == ("new", 2.0)
    assert dict(sample).keys() == {"reward", "text"}
    assert sample["text"] == "text 301"
    assert ({"weight": 1.0} | sample)["weight"] == 1.0
    with pytest.raises(TypeError):
        sample | 3


def test_new_columns_are_stacked_where_they_are_tensors_or_arrays_and_lists_otherwise():
    new = [
        sample | {"t": torch.tensor([row, 1]), "a": np.array([row]), "n": row, "d": {"row": row}, "nothing": None}
        for row, sample in enumerate(select([EpisodeBuffer(0, [({"x": [1, 2]}, ids(0, 2))])]))
    ]
    batch, _ = merged(new)
    assert same(batch["t"], torch.tensor([[0, 1], [1, 1]]))
    assert same(batch["a"], np.array([[0], [1]]))
    assert (batch["n"], batch["d"], batch["nothing"]) == ([0, 1], [{"row": 0}, {"row": 1}], [None, None])


def test_a_value_where_the_whole_column_was_none():
    samples = select([EpisodeBuffer(0, [({"x": [1, 2], "bonus": None}, ids(0, 2))])])
    assert merged([sample | {"bonus": torch.tensor(1.5)} for sample in samples])[0]["bonus"].tolist() == [1.5, 1.5]
    with pytest.raises(DataError, match=r"'bonus' is None and Tensor in batches that belong together"):
        merged([samples[0], samples[1] | {"bonus": torch.tensor(1.5)}])


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (np.array([1, 2], dtype=np.float32), 0.5, np.array([0.5, 2], dtype=np.float32)),
        (np.array([1, 2], dtype=np.int8), 3, np.array([3, 2], dtype=np.int8)),
        (np.array([1, 2]), 0.5, np.array([0.5, 2.0])),
        (np.array(["a", "b"]), "longer", np.array(["longer", "b"])),
        (np.array([None, "b"], dtype=object), {"k": 1}, np.array([{"k": 1}, "b"], dtype=object)),
    ],
)
def test_another_value_in_an_array_keeps_the_dtype_that_can_hold_it(column, value, expected):
    first, second = select([EpisodeBuffer(0, [({"x": column}, ids(0, 2))])])
    assert same(merged([first | {"x": value}, second])[0]["x"], expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("numbers", 0.5, r"'numbers' is float, but a tensor .* Give torch\.tensor\(0\.5\)"),
        ("numbers", None, r"'numbers' is None, but a tensor"),
        ("array", [1, 2, 3], r"'array' is list, but an array"),
        ("scores", "high", r"'scores' is str, but an array"),
        ("scores", None, r"'scores' is None, but an array"),
        ("scores", torch.tensor(1.0), r"'scores' is Tensor, but an array"),
        ("words", 3, r"'words' is int, but an array"),
        ("nested", 3, r"'nested' is int, but a dict"),
        ("nested", {"x": 1.0, "deep": {"y": 1, "none": None}}, r"'nested\.x' is float, but a tensor"),
    ],
)
def test_a_value_that_does_not_fit_its_column(key, value, words):
    sample = select([EpisodeBuffer(6, [(one_of_each(), ids(40, 3))])])[2]
    with pytest.raises(DataError, match=r"sample 42 of episode 6: " + words):
        merged([sample | {key: value}])
