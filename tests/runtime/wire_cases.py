"""Values of all kinds for the tests of the wire format, and what makes two of them the same."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

TORCH_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64,
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0
    norm: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self):
        object.__setattr__(self, "norm", "computed")


def bits(tensor: torch.Tensor) -> list[int]:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).tolist()


def same(a: Any, b: Any) -> bool:
    """Equal in type and content, bit by bit; keys and their order too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same(list(a), list(b)) and same(list(a.values()), list(b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Point):
        return same((a.x, a.y, a.norm), (b.x, b.y, b.norm))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


@st.composite
def tensors(draw):
    """Any dtype, 0-d and empty ones too; every bit pattern, NaNs included; contiguous, transposed or strided."""
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    width = torch.empty(0, dtype=dtype).element_size()
    count = math.prod(shape) * width
    raw = draw(st.lists(st.integers(0, 1 if dtype == torch.bool else 255), min_size=count, max_size=count))
    flat = torch.tensor(raw, dtype=torch.uint8).view(dtype) if raw else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded"]))
    if layout == "transposed" and tensor.ndim > 1:
        tensor = tensor.transpose(0, -1)
    elif layout == "strided" and tensor.ndim > 0:
        tensor = tensor[::2]
    elif layout == "expanded":
        tensor = tensor.expand(2, *tensor.shape)
    return tensor


@st.composite
def arrays(draw):
    """Numbers of either byte order; times and text in the machine's (numpy's own pickling turns the others round)."""
    dtype = draw(
        st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(),
            hnp.unsigned_integer_dtypes(),
            hnp.floating_dtypes(),
            hnp.complex_number_dtypes(),
            hnp.unicode_string_dtypes(endianness="="),
            hnp.datetime64_dtypes(endianness="="),
        )
    )
    array = draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3)))
    return array.T[::2] if array.ndim and draw(st.booleans()) else array


TEXT = st.text(st.characters(codec=None, exclude_categories=()))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(allow_nan=False),
    TEXT,
    st.binary(),
    st.binary().map(bytearray),
)
BIG = st.integers(2**63 - 2, 2**65) | st.integers(-(2**65), -(2**63) + 2)
KEYS = st.one_of(TEXT, st.integers(), BIG, st.booleans(), st.none(), st.tuples(st.integers(), TEXT), st.binary())
RANGES = st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))
VALUES = st.recursive(
    SCALARS | BIG | tensors() | arrays() | RANGES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.builds(Point, inner, inner),
    ),
    max_leaves=6,
)
