"""Data sets that differ anywhere have another fingerprint, in every process the same."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from chatlearn.data import fingerprint as room
from chatlearn.data.fingerprint import fingerprint

SAMPLES: list[Any] = [
    "text",
    {"prompt": "a", "n": 1},
    [1, 2.5, None, True, b"x"],
    torch.arange(4),
    np.arange(3.0),
    ("a", "b"),
]


def test_it_counts_and_is_the_same_for_equal_data() -> None:
    assert fingerprint(SAMPLES).startswith("6:")
    assert fingerprint(list(SAMPLES)) == fingerprint(SAMPLES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([1], [1.0]),
        ([1], ["1"]),
        ([True], [1]),
        ([{"a": 1}], [{"b": 1}]),
        ([[1, 2], 3], [[1], 2, 3]),
        ([torch.tensor([1])], [torch.tensor([1.0])]),
        ([torch.zeros(2, 3)], [torch.zeros(3, 2)]),
        ([np.zeros(2)], [np.array([0, 1.0])]),
        (["a", "b"], ["b", "a"]),
        (["a"], ["a", "a"]),
        ([None], [0]),
        (["\ud800"], ["\ud801"]),
    ],
)
def test_any_difference_shows(one: list[Any], other: list[Any]) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_it_is_the_same_in_another_process() -> None:
    """Hashes of texts differ from process to process, and so do addresses of objects."""
    program = (
        "from chatlearn.data.fingerprint import fingerprint\n"
        "class Sample: pass\n"
        "print(fingerprint([{'b': 1, 'a': 'text'}, Sample(), ('x', 2)]))"
    )
    printed = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(printed) == 1
    assert printed.pop().startswith("3:")


def test_of_large_data_sets_samples_all_over_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST", 10)
    read: list[int] = []

    class Data:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> int:
            read.append(index)
            return index

    assert fingerprint(Data()).startswith("1000:")
    assert read == list(range(0, 1000, 100))


def test_a_sample_that_cannot_be_read_is_no_error() -> None:
    class Data:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            raise KeyError(index)

    assert fingerprint(Data()).startswith("2:")
