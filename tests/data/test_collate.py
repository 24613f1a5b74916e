"""Batches put together and taken apart."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from batch_cases import DTYPES, batches, same
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data import collate
from chatlearn.data.collate import Samples, merge, pack, pad, select, split
from chatlearn.data.padding import Padding
from chatlearn.errors import DataError
from chatlearn.types import num_rows


@given(batch=batches(), size=st.integers(1, 8))
def test_merging_what_was_split_is_the_identity(batch, size):
    assert same(merge(split(batch, size)), batch)


@given(batch=batches(), size=st.integers(1, 8))
def test_pieces_are_full_but_for_the_last(batch, size):
    rows = num_rows(batch)
    sizes = [num_rows(piece) for piece in split(batch, size)]
    assert sizes == [size] * (rows // size) + [rows % size] * (rows % size > 0)


@given(batch=batches(), data=st.data())
def test_select_takes_rows_in_order(batch, data):
    """Repeats and none at all included; the expected rows are taken one by one with Python's indexing."""
    rows = data.draw(st.lists(st.integers(0, num_rows(batch) - 1), max_size=9))
    taken = select(batch, rows)
    assert list(taken) == list(batch)

    def check(result, source):
        if source is None:
            assert result is None
            return
        if isinstance(source, dict):
            assert list(result) == list(source)
            for key in source:
                check(result[key], source[key])
            return
        assert len(result) == len(rows)
        for part, row in zip(result, rows, strict=True):
            assert same(part, source[row]) or part is source[row]

    check(taken, batch)


@pytest.mark.parametrize("rows", [range(1, 3), range(0, 4, 2), range(3, -1, -1), range(0)])
def test_select_a_range(rows):
    batch = {"t": torch.arange(4), "a": np.arange(4), "l": list("abcd")}
    taken = select(batch, rows)
    assert (taken["t"].tolist(), taken["a"].tolist()) == (list(rows), list(rows))
    assert taken["l"] == ["abcd"[i] for i in rows]


def test_neighbouring_rows_are_views_of_tensors_and_arrays():
    batch = {"t": torch.arange(4), "a": np.arange(4)}
    piece = split(batch, 2)[1]
    assert piece["t"].data_ptr() == batch["t"][2:].data_ptr()
    assert np.shares_memory(piece["a"], batch["a"])


def test_batches_of_differing_widths_are_padded_on_the_right():
    a = {"t": torch.tensor([[1, 2]]), "d": {"n": np.array([[1.0], [2.0]])}, "text": ["a"]}
    b = {"t": torch.tensor([[3, 4, 5]]), "d": {"n": np.array([[3.0, 4.0]])}, "text": ["b"]}
    merged = merge([a, b], padding=-1)
    assert merged["t"].tolist() == [[1, 2, -1], [3, 4, 5]]
    assert merged["d"]["n"].tolist() == [[1, -1], [2, -1], [3, 4]]
    assert merged["text"] == ["a", "b"]
    assert merge([a, b])["t"].tolist() == [[1, 2, 0], [3, 4, 5]]


@given(shapes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=4))
@pytest.mark.parametrize("make", [torch.ones, np.ones])
def test_every_dimension_beyond_the_first_is_widened(make, shapes):
    """The expected result is filled in by hand, block by block."""
    merged = merge([{"x": make(shape)} for shape in shapes], padding=7)["x"]
    expected = np.full((sum(s[0] for s in shapes), max(s[1] for s in shapes), max(s[2] for s in shapes)), 7.0)
    start = 0
    for rows, height, width in shapes:
        expected[start : start + rows, :height, :width] = 1
        start += rows
    assert np.array_equal(np.asarray(merged), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_keeps_the_dtype(dtype):
    merged = merge([{"x": torch.ones(1, 1, dtype=dtype)}, {"x": torch.ones(1, 2, dtype=dtype)}])["x"]
    assert merged.dtype == dtype
    assert merged.tolist() == [[1, 0], [1, 1]]


def test_no_batch_and_one_batch():
    batch = {"x": [1]}
    assert merge([]) == {}
    assert merge([batch]) is batch
    assert same(merge([{"x": torch.ones(0, 2)}, {"x": torch.ones(2, 2)}]), {"x": torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"x": [1]}, {"x": [1], "extra": [2]}, "different keys: extra"),
        ({"x": [1], "gone": [2]}, {"x": [1]}, "different keys: gone"),
        ({"x": [1]}, {"x": torch.ones(1)}, "'x' is Tensor and list"),
        ({"x": np.ones(1)}, {"x": torch.ones(1)}, "'x' is Tensor and ndarray"),
        ({"x": torch.ones(1)}, {"x": torch.ones(1, 2)}, r"'x' has \[1\] and \[1, 2\]"),
        ({"d": {"x": [1]}}, {"d": {"y": [1]}}, r"different keys: d\.x, d\.y"),
    ],
)
def test_batches_that_do_not_belong_together(first, second, words):
    with pytest.raises(DataError, match=words):
        merge([first, second])


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"d": {"x": torch.ones(1)}}, r"'d\.x' is None and Tensor in batches that belong together"),
        ({"d": {"x": [1]}}, r"'d\.x' is None and list"),
        ({"d": None}, "'d' is None and dict"),
        ({"d": {"x": 7}}, r"'d\.x' is None and int"),
    ],
)
def test_none_goes_with_none(second, words):
    first = {"d": {"x": None}, "rows": [1]}
    assert merge([first, first]) == {"d": {"x": None}, "rows": [1, 1]}
    with pytest.raises(DataError, match=words):
        merge([first, {**second, "rows": [2]}])


def test_values_without_rows_are_told():
    with pytest.raises(DataError, match="'x' is int in batches"):
        merge([{"x": 1}, {"x": 2}])


@pytest.mark.parametrize("batch", [{}, {"a": None}, {"a": {}}, {"a": {"b": None}}])
def test_batches_without_rows(batch):
    assert num_rows(batch) == 0
    assert split(batch, 2) == [batch]
    assert merge([batch, batch]) == batch


def test_rows_are_counted_in_the_first_value_that_has_some():
    assert num_rows({"a": None, "b": {}, "c": {"d": None, "e": [1, 2]}, "f": [1]}) == 2


# -------------------------------------------------------------------------------------------------- padding by rules


def test_each_key_is_padded_by_its_rule():
    a = {"t": torch.tensor([[1, 2]]), "u": torch.tensor([[1]]), "d": {"t": np.array([[1.0]])}}
    b = {"t": torch.tensor([[3]]), "u": torch.tensor([[2, 3]]), "d": {"t": np.array([[2.0, 3.0]])}}
    rules = {"t": Padding(-1, "left"), "d.t": Padding(float("nan"), "left"), "unused": Padding(9)}
    merged = merge([a, b], rules, padding=5)
    assert merged["t"].tolist() == [[1, 2], [-1, 3]]
    assert merged["u"].tolist() == [[1, 5], [2, 3]]
    np.testing.assert_array_equal(merged["d"]["t"], [[np.nan, 1], [2, 3]])


@given(
    shapes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=4),
    side=st.sampled_from(["left", "right"]),
)
@pytest.mark.parametrize("make", [torch.ones, np.ones])
def test_a_side_holds_for_every_dimension_beyond_the_first(make, shapes, side):
    """The expected result is filled in by hand, block by block."""
    merged = merge([{"x": make(shape)} for shape in shapes], {"x": Padding(7, side)})["x"]
    height, width = max(s[1] for s in shapes), max(s[2] for s in shapes)
    expected = np.full((sum(s[0] for s in shapes), height, width), 7.0)
    start = 0
    for rows, h, w in shapes:
        top, left = (height - h, width - w) if side == "left" else (0, 0)
        expected[start : start + rows, top : top + h, left : left + w] = 1
        start += rows
    assert np.array_equal(np.asarray(merged), expected)


@pytest.mark.parametrize(
    ("dtype", "filling"), [("<U3", ""), ("S2", b""), (object, None), ("M8[D]", np.datetime64("1970-01-01"))]
)
def test_arrays_that_hold_no_numbers(dtype, filling):
    a, b = np.zeros((1, 1), dtype), np.zeros((1, 2), dtype)
    merged = merge([{"x": a}, {"x": b}], {"x": Padding(3)})["x"]
    assert merged.dtype == a.dtype
    assert merged[0, 1] == filling


@pytest.mark.parametrize("make", [lambda n: torch.zeros(1, n, dtype=torch.int64), lambda n: np.zeros((1, n), np.int64)])
@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_value_that_the_dtype_can_not_hold(make, value):
    with pytest.raises(DataError, match=f"'x' is int64, which can't hold the padding value {value}"):
        merge([{"x": make(1)}, {"x": make(2)}], {"x": Padding(value)})


# ------------------------------------------------------------------------------------------------------------- pack


@given(lengths=st.lists(st.integers(0, 20), max_size=30), budget=st.integers(20, 60))
def test_packed_batches_hold_every_sample_once_within_the_budget(lengths, budget):
    batches = pack(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in batch) <= budget for batch in batches)
    assert all(batch == sorted(batch) for batch in batches)
    assert batches == sorted(batches)
    # any two batches that would fit into one would have been one
    sums = sorted(sum(lengths[i] for i in batch) for batch in batches)
    assert len(sums) < 2 or sums[0] + sums[1] > budget


def test_first_fit_decreasing_by_hand():
    """8 6 5 5 3 2 1 into tens: 8+2, 6+3+1, 5+5."""
    assert pack([3, 5, 8, 2, 6, 5, 1], 10) == [[0, 4, 6], [1, 5], [2, 3]]
    assert pack([], 10) == []


@pytest.mark.parametrize("length", [11, -1])
def test_a_sample_that_fits_into_no_batch(length):
    with pytest.raises(DataError, match=rf"pack\(max_tokens=10\): sample 1 has {length} tokens"):
        pack([3, length], 10)


# -------------------------------------------------------------------------------------------------------------- pad


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    extra=st.none() | st.integers(0, 3),
    side=st.sampled_from(["left", "right"]),
    trailing=st.sampled_from([(), (2,)]),
)
def test_pad(lengths, extra, side, trailing):
    sequences = [torch.full((length, *trailing), i + 1) for i, length in enumerate(lengths)]
    width = max(lengths) + (extra or 0)
    result = pad(sequences, value=-1, side=side, length=None if extra is None else width)
    assert result.shape == (len(lengths), width, *trailing)
    for i, (row, length) in enumerate(zip(result, lengths, strict=True)):
        columns = [-1] * (width - length)
        columns = columns + [i + 1] * length if side == "left" else [i + 1] * length + columns
        assert row.tolist() == [[column] * 2 if trailing else column for column in columns]


def test_pad_keeps_the_dtype_and_copies():
    sequences = [torch.tensor([1.5, 2.5], dtype=torch.bfloat16), torch.tensor([3.5], dtype=torch.bfloat16)]
    result = pad(sequences)
    assert (result.dtype, result.tolist()) == (torch.bfloat16, [[1.5, 2.5], [3.5, 0]])
    result[0, 0] = 9
    assert sequences[0].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("sequences", "options", "words"),
    [
        ([], {}, "got no sequences"),
        ([torch.ones(1)], {"side": "middle"}, "'left' or 'right'"),
        ([torch.ones(1), torch.ones(3)], {"length": 2}, "a sequence has 3 elements"),
    ],
)
def test_pad_refuses(sequences, options, words):
    with pytest.raises(DataError, match=words):
        pad(sequences, **options)


# ---------------------------------------------------------------------------------------------------------- Samples


def test_samples_read_as_a_list_and_as_columns():
    samples = Samples([{"q": "a", "n": 1}, {"q": "b", "n": 2}])
    assert isinstance(samples, list)
    assert [sample["n"] for sample in samples] == [1, 2]
    assert (samples[1], samples[-1]["q"], len(samples[:1])) == ({"q": "b", "n": 2}, "b", 1)
    assert samples.keys() == ["q", "n"]
    assert samples.values() == [["a", "b"], [1, 2]]
    assert samples.items() == [("q", ["a", "b"]), ("n", [1, 2])]
    assert samples["n"] == [1, 2]
    assert dict(samples) == {"q": ["a", "b"], "n": [1, 2]}


def test_columns_need_the_same_keys_in_all_samples():
    assert Samples([{"a": 1, "b": 2}, {"b": 3, "a": None}]).columns() == {"a": [1, None], "b": [2, 3]}
    assert Samples().columns() == {}
    with pytest.raises(DataError, match=r"different keys: b, c is not in all .*number 0 has a, b; number 1 has a, c"):
        Samples([{"a": 1, "b": 2}, {"a": 1, "c": 2}]).columns()


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("pad", ["sequences", "*value", "*side", "*length"]),
        ("split", ["batch", "size"]),
        ("select", ["batch", "rows"]),
        ("merge", ["batches", "rules", "*padding"]),
        ("pack", ["lengths", "max_tokens"]),
    ],
)
def test_signatures_that_others_build_on(name, signature):
    parameters = inspect.signature(getattr(collate, name)).parameters.values()
    assert [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters] == signature
