"""Batches of all kinds, for properties that hold of every batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chatlearn.data.replay import EpisodeBuffer
from chatlearn.data.samples import batches as to_batches
from chatlearn.types import SampleIds

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


def same(a, b) -> bool:
    """Equal in type, dtype, shape and content, dicts and lists inside too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and all(map(same, a.ravel().tolist(), b.ravel().tolist()))
    return a == b


KEYS = st.text("abc", min_size=1, max_size=2)
ENTRIES = (
    st.none()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)


@st.composite
def values(draw, rows):
    kind = draw(st.sampled_from(["tensor", "array", "strings", "objects", "list", "none", "dict"]))
    if kind == "none":
        return None
    if kind == "dict":
        return draw(st.dictionaries(KEYS, values(rows), max_size=2))
    if kind == "list":
        return draw(st.lists(ENTRIES, min_size=rows, max_size=rows))
    shape = (rows, *draw(st.lists(st.integers(0, 3), max_size=2)))
    if kind == "strings":
        return draw(hnp.arrays("<U4", shape, elements=st.text("abc", max_size=4)))
    if kind == "objects":
        return draw(hnp.arrays(object, shape, elements=st.none() | st.text("abc", max_size=2)))
    array = draw(hnp.arrays(np.int64, shape, elements=st.integers(-9, 9)))
    return torch.from_numpy(array).to(draw(st.sampled_from(DTYPES))) if kind == "tensor" else array


@st.composite
def batches(draw):
    rows = draw(st.integers(1, 7))
    batch = draw(st.dictionaries(KEYS, values(rows), max_size=3))
    return {**batch, "always": list(range(rows))}


def ids(start, count, version=0, group_size=2):
    positions = range(start, start + count)
    return SampleIds(tuple(positions), tuple(p // group_size for p in positions), version)


def episode(number, sizes=(3, 2)):
    """Samples 100 * number on, made by weights of version ``number``; a reward is a hundredth of the id."""
    parts, start = [], 100 * number
    for size in sizes:
        rows = range(start, start + size)
        reward = torch.tensor([row / 100 for row in rows], dtype=torch.float32)
        parts.append(
            (
                {"reward": reward, "text": [f"text {row}" for row in rows]},
                ids(start, size, number),
            )
        )
        start += size
    return EpisodeBuffer(number, parts)


def one_of_each(rows=3):
    """A batch with a column of every kind."""
    objects = np.empty(rows, dtype=object)
    for row in range(rows):
        objects[row] = [row, "x"]
    return {
        "tensor": torch.arange(2 * rows, dtype=torch.bfloat16).view(rows, 2),
        "numbers": torch.arange(rows, dtype=torch.float64) / 3,
        "array": np.arange(3 * rows, dtype=np.int16).reshape(rows, 3),
        "scores": np.linspace(0, 1, rows, dtype=np.float32),
        "words": np.array(["alpha", "b", ""][:rows]),
        "objects": objects,
        "texts": ["a", None, "ç"][:rows],
        "ragged": [torch.arange(row) for row in range(rows)],
        "notes": [{"turn": row, "by": ("user", row)} for row in range(rows)],
        "nested": {"x": torch.ones(rows, 1), "deep": {"y": list(range(rows)), "none": None}},
        "nothing": None,
    }


def merged(samples, rules=None):
    """Samples of one weight version as one batch, and its ids."""
    ((batch, found),) = to_batches(samples, rules)
    return batch, found
