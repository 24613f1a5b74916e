"""Plans against a plain reference: cut a global array by one layout, run the copies, compare with the other's cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatlearn.errors import SyncError
from chatlearn.sync.plan import Block, Held, SyncPlan, Table, make_plan

Layout = list[dict[str, tuple[tuple[int, int], ...]]]
"""rank -> tensor -> (start, stop) in each dimension."""


def _held(shapes: dict[str, tuple[int, ...]], layout: Layout) -> Table:
    return {
        rank: {
            name: Held(shapes[name], "float32", Block(tuple(a for a, _ in box), tuple(b - a for a, b in box)))
            for name, box in boxes.items()
        }
        for rank, boxes in enumerate(layout)
    }


def _local(tensors: dict[str, np.ndarray], layout: Layout) -> list[dict[str, np.ndarray]]:
    """What each rank holds, cut by plain slicing."""
    return [
        {name: tensors[name][tuple(slice(a, b) for a, b in box)].copy() for name, box in boxes.items()}
        for boxes in layout
    ]


def _carry_out(plan: SyncPlan, source: list[dict[str, np.ndarray]], target: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Runs the copies; returns how often each destination element was written, at least and at most."""
    written = [{name: np.zeros(array.shape, int) for name, array in rank.items()} for rank in target]
    for t in plan.transfers:
        target[t.destination_rank][t.name][t.destination_slice] = source[t.source_rank][t.name][t.source_slice]
        written[t.destination_rank][t.name][t.destination_slice] += 1
    counts = [counts.reshape(-1) for rank in written for counts in rank.values()]
    return np.concatenate(counts) if counts else np.zeros(0, int)


@st.composite
def _cuts(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """A dimension cut into pieces, some of them empty."""
    inner = draw(st.lists(st.integers(0, size), max_size=3))
    edges = [0, *sorted(inner), size]
    return list(itertools.pairwise(edges))


@st.composite
def _layouts(draw: st.DrawFn, shapes: dict[str, tuple[int, ...]]) -> Layout:
    """Each tensor is cut along all of its dimensions, its blocks dealt to ranks, and some blocks held twice."""
    boxes = [
        (name, box)
        for name, shape in shapes.items()
        for box in itertools.product(*(draw(_cuts(size)) for size in shape))
    ]
    boxes += draw(st.lists(st.sampled_from(boxes), max_size=2)) if boxes else []
    layout: Layout = [{}]
    for name, box in boxes:
        free = [rank for rank, held in enumerate(layout) if name not in held]
        rank = draw(st.sampled_from([*free, len(layout)]))
        layout += [{}] if rank == len(layout) else []
        layout[rank][name] = box
    return layout


_shapes = st.dictionaries(
    st.sampled_from(["embedding", "layer.0.weight", "norm", "scale"]),
    st.lists(st.integers(1, 5), max_size=3).map(tuple),
    min_size=1,
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_two_layouts(data: st.DataObject) -> None:
    shapes = data.draw(_shapes)
    tensors = {name: np.random.default_rng(0).normal(size=shape) for name, shape in shapes.items()}
    ours, theirs = data.draw(_layouts(shapes)), data.draw(_layouts(shapes))
    plan = make_plan("trained", _held(shapes, ours), "rollout", _held(shapes, theirs))
    wanted = _local(tensors, theirs)
    arrived = [{name: np.full(a.shape, np.nan) for name, a in rank.items()} for rank in wanted]
    written = _carry_out(plan, _local(tensors, ours), arrived)
    assert np.all(written == 1)  # each element once: nothing is missing, and nothing is sent twice
    for got, expected in zip(arrived, wanted, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_source_blocks_that_overlap(data: st.DataObject) -> None:
    """Such as a whole tensor beside a share of it. What is missing is an error, never left unwritten."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple))
    tensors = {"w": np.arange(np.prod(shape), dtype=float).reshape(shape)}

    def box(draw: st.DataObject) -> tuple[tuple[int, int], ...]:
        return tuple((min(p), max(p)) for p in (draw.draw(st.tuples(*[st.integers(0, s)] * 2)) for s in shape))

    ours: Layout = [{"w": box(data)} for _ in range(data.draw(st.integers(1, 5)))]
    whole: Layout = [{"w": tuple((0, size) for size in shape)}]
    covered = np.zeros(shape, bool)
    for rank in ours:
        covered[tuple(slice(a, b) for a, b in rank["w"])] = True
    shapes = {"w": shape}
    if not covered.all():
        with pytest.raises(
            SyncError, match=f"hold {covered.sum()} of the {covered.size} elements of w that rank 0 of rollout"
        ):
            make_plan("trained", _held(shapes, ours), "rollout", _held(shapes, whole))
        return
    plan = make_plan("trained", _held(shapes, ours), "rollout", _held(shapes, whole))
    arrived = [{"w": np.full(shape, np.nan)}]
    assert np.all(_carry_out(plan, _local(tensors, ours), arrived) == 1)
    np.testing.assert_array_equal(arrived[0]["w"], tensors["w"])


def test_column_shards_to_row_shards_by_hand() -> None:
    """A 2 x 4 matrix, halves by column to halves by row: four copies of 1 x 2."""
    shapes = {"w": (2, 4)}
    columns: Layout = [{"w": ((0, 2), (0, 2))}, {"w": ((0, 2), (2, 4))}]
    rows: Layout = [{"w": ((0, 1), (0, 4))}, {"w": ((1, 2), (0, 4))}]
    plan = make_plan("a", _held(shapes, columns), "b", _held(shapes, rows))
    assert plan
    assert [(t.source_rank, t.source_slice, t.destination_rank, t.destination_slice) for t in plan.transfers] == [
        (0, _box((0, 1), (0, 2)), 0, _box((0, 1), (0, 2))),
        (1, _box((0, 1), (0, 2)), 0, _box((0, 1), (2, 4))),
        (0, _box((1, 2), (0, 2)), 1, _box((0, 1), (0, 2))),
        (1, _box((1, 2), (0, 2)), 1, _box((0, 1), (2, 4))),
    ]


def _box(*edges: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in edges)


def test_data_parallel_ranks_send_once() -> None:
    shapes = {"w": (4,), "step": ()}
    both: Layout = [{"w": ((0, 4),), "step": ()}, {"w": ((0, 4),), "step": ()}]
    plan = make_plan("a", _held(shapes, both), "b", _held(shapes, [both[0]]))
    assert [t.name for t in plan.transfers] == ["w", "step"]


def test_every_misfit_is_listed_at_once() -> None:
    def whole(**shapes: tuple[int, ...]) -> Table:
        return _held(shapes, [{name: tuple((0, size) for size in shape) for name, shape in shapes.items()}])

    with pytest.raises(SyncError) as caught:
        make_plan("trained", whole(a=(2, 3), b=(4,), fits=(1,)), "rollout", whole(b=(5,), c=(6, 7), fits=(1,)))
    text = str(caught.value)
    assert "trained do not fit rollout" in text
    assert "a [2, 3] is missing in rollout" in text
    assert "c [6, 7] is missing in trained" in text
    assert "b is [4] in trained and [5] in rollout" in text
    assert "fits" not in text


def test_a_long_list_of_misfits_is_cut() -> None:
    shapes = {f"layer.{i}": (1,) for i in range(30)}
    table = _held(shapes, [dict.fromkeys(shapes, ((0, 1),))])
    with pytest.raises(SyncError, match=r"layer\.19 \[1\] is missing in b\n  … and 10 more"):
        make_plan("a", table, "b", {0: {}})
