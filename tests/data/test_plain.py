"""Values as plain trees, through a file and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batch_cases import same

from chatlearn.checkpoint.files import load_state, save_state
from chatlearn.data.plain import from_plain, to_plain
from chatlearn.errors import DataError


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x00\xff",
        (1, (2.5, None)),
        {1: "a", ("b", 2): [True]},
        {"dict": [], "raw": 0},
        np.float32(0.1),
        np.str_("word"),
        np.datetime64("2024-02-29T12:00"),
        np.array(3.0),
        np.array([1, 2], dtype=">i4"),
        np.array([1, 2], dtype=np.uint32),
        np.array([[1 + 2j]]),
        np.array(["ab", ""]),
        np.array([b"ab", b""]),
        np.array(["2024-02-29"], dtype="M8[D]"),
        np.array([[1, "x"], [None, (2,)]], dtype=object),
        np.empty((0, 3), dtype="<U2"),
        np.empty((2, 0)),
        np.arange(6).reshape(2, 3).T,
        torch.empty(0, 2),
        torch.tensor(3, dtype=torch.bfloat16),
        float("inf"),
        "\ud800",
        2**80,
    ],
    ids=repr,
)
def test_a_value_comes_back_from_a_file_as_it_was(value, tmp_path):
    save_state(to_plain([value, {"inside": (value,)}], "x"), tmp_path / "x")
    first, second = from_plain(load_state(tmp_path / "x"))
    assert same(first, value)
    assert same(second["inside"][0], value)


def test_arrays_that_come_back_can_be_written_to():
    array = from_plain(to_plain(np.array(["a", "b"]), "x"))
    array[0] = "c"
    assert array.tolist() == ["c", "b"]


class Thing:
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Thing(), "is Thing"),
        ({1, 2}, "is set"),
        (np.zeros(1, dtype=[("a", "i4")]), "is an array of dtype"),
    ],
)
def test_what_a_file_can_not_hold_is_named_by_its_place(value, words):
    with pytest.raises(DataError) as caught:
        to_plain({"notes": [0, {"who": value}]}, "episode 3: meta")
    assert f"episode 3: meta['notes'][1]['who'] {words}" in str(caught.value)
    assert "which a file can't hold. Give tensors, arrays, numbers" in str(caught.value)
