"""Where weights lie in memory: every byte of every tensor once, in buckets of bounded size, whatever the shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatlearn.sync import layout as layouts
from chatlearn.sync.layout import Layout, make_buckets, make_layout
from chatlearn.sync.plan import Block, Held, make_plan

Shapes = dict[str, tuple[int, ...]]


def _held(shapes: Shapes, dtype: str) -> dict[str, Held]:
    return {name: Held(shape, dtype, Block((0,) * len(shape), shape)) for name, shape in shapes.items()}


def _layout(shapes: Shapes, ours: str = "torch.float32", theirs: str = "torch.float32", **options: Any) -> Layout:
    source, destination = _held(shapes, ours), _held(shapes, theirs)
    plan = make_plan("trainer", {0: source}, "policy", {0: destination})
    return make_layout(plan.transfers, source, destination, **options)


SHAPES = st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=6)


@given(SHAPES, st.integers(0, 6), st.sampled_from([4, 12, 64, 4096]))
@settings(max_examples=200, deadline=None)
def test_pieces_cover_all_tensors_once(shapes: list[tuple[int, ...]], num_fixed: int, bucket_bytes: int) -> None:
    """Against numbered elements, copied piece by piece through plain memory."""
    named = {f"t{i}": shape for i, shape in enumerate(shapes)}
    fixed = set(list(named)[::-1][:num_fixed])
    whole = _layout(named, fixed=fixed)
    layout = Layout(whole.tensors, whole.num_fixed, whole.nbytes, bucket_bytes, 1024)
    buckets = make_buckets(layout)
    memory = np.full(layout.nbytes, 0xFF, np.uint8)
    arrays = {
        n: np.arange(math.prod(s), dtype=np.float32).reshape(s) + 100 * i for i, (n, s) in enumerate(named.items())
    }
    end = 0
    for number, bucket in enumerate(buckets.all):
        assert end <= bucket.start < bucket.stop
        end = bucket.stop
        assert bucket.stop - bucket.start <= bucket_bytes
        for piece in bucket.pieces:
            name = layout.tensors[piece.tensor].transfer.name
            assert (name in fixed) == (number < buckets.num_fixed)
            assert piece.first == piece.start - layout.tensors[piece.tensor].offset
            data = np.ascontiguousarray(arrays[name][piece.index]).tobytes()
            assert len(data) == piece.nbytes
            memory[piece.start : piece.start + piece.nbytes] = np.frombuffer(data, np.uint8)
    for tensor in layout.tensors:
        name = tensor.transfer.name
        assert tensor.offset % 64 == 0
        found = memory[tensor.offset : tensor.offset + tensor.nbytes].tobytes()
        assert found == arrays[name].tobytes()


@given(SHAPES, st.integers(0, 6), st.integers(1, 600), st.booleans())
@settings(max_examples=100, deadline=None)
def test_chunks_are_ranges_of_buckets(shapes: Any, num_fixed: int, chunk_bytes: int, is_partial: bool) -> None:
    named = {f"t{i}": shape for i, shape in enumerate(shapes)}
    whole = _layout(named, fixed=set(list(named)[:num_fixed]))
    buckets = make_buckets(Layout(whole.tensors, whole.num_fixed, whole.nbytes, 64, 1024))
    first = buckets.num_fixed if is_partial else 0
    chunks = buckets.chunks(chunk_bytes, first)
    assert [number for start, stop in chunks for number in range(start, stop)] == list(range(first, len(buckets.all)))
    for start, stop in chunks:
        nbytes = buckets.all[stop - 1].stop - buckets.all[start].start
        assert nbytes <= chunk_bytes or stop == start + 1
        assert (start < buckets.num_fixed) == (stop <= buckets.num_fixed)


@pytest.mark.parametrize(
    ("ours", "theirs", "widen", "travels"),
    [
        ("torch.float32", "torch.bfloat16", False, "torch.bfloat16"),
        ("torch.bfloat16", "torch.float32", False, "torch.bfloat16"),
        ("torch.bfloat16", "torch.float32", True, "torch.float32"),
        ("torch.float16", "torch.bfloat16", False, "torch.bfloat16"),
    ],
)
def test_the_smaller_dtype_travels(ours: str, theirs: str, widen: bool, travels: str) -> None:
    layout = _layout({"weight": (3, 5)}, ours, theirs, widen=widen)
    assert layout.tensors[0].dtype == travels
    assert layout.tensors[0].nbytes == 15 * (4 if travels == "torch.float32" else 2)


def test_buckets_and_chunks_stay_within_what_the_run_allows() -> None:
    shapes: Shapes = {"weight": (4096, 4096)}
    assert _layout(shapes).chunk_bytes == 4 * 2**20  # a sixteenth of 64 MiB
    assert _layout(shapes, largest_chunk=2**20).chunk_bytes == 2**20
    assert _layout({"weight": (3,)}).chunk_bytes == 2**20
    assert all(b.stop - b.start == layouts.BUCKET_BYTES for b in make_buckets(_layout(shapes)).all)
