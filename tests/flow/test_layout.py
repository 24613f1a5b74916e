"""Places of boxes and lines, on graphs small enough to work out by hand."""

from __future__ import annotations

import pytest

from chatlearn.flow.layout import COLUMN_GAP, ROW_GAP, Edge, Size, place


def edge(text: str, kind: str = "data") -> Edge:
    return Edge(*text.split(), kind)


def test_a_chain_lies_on_one_line():
    layout = place({key: Size(100, 40) for key in "abc"}, [edge("a b"), edge("b c")])
    assert [(box.x, box.y) for box in layout.boxes.values()] == [
        (0, 0), (100 + COLUMN_GAP, 0), (200 + 2 * COLUMN_GAP, 0),
    ]  # fmt: skip
    assert (layout.width, layout.height) == (300 + 2 * COLUMN_GAP, 40)
    assert list(layout.routes[0]) == [(100, 20, 100, 20), (100 + COLUMN_GAP, 20, 100 + COLUMN_GAP, 20)]


def test_a_fork_stands_around_its_source_with_a_gap():
    layout = place({"a": Size(50, 40), "b": Size(50, 40), "c": Size(50, 40)}, [edge("a b"), edge("a c")])
    boxes = layout.boxes
    assert boxes["c"].y - (boxes["b"].y + 40) == pytest.approx(ROW_GAP)
    assert boxes["a"].middle == pytest.approx((boxes["b"].middle + boxes["c"].middle) / 2)


def test_a_column_is_as_wide_as_its_widest_box_and_boxes_stand_in_its_middle():
    layout = place({"a": Size(50, 40), "b": Size(80, 40), "c": Size(200, 40)}, [edge("a b"), edge("a c")])
    assert (layout.boxes["b"].x, layout.boxes["c"].x) == (50 + COLUMN_GAP + 60, 50 + COLUMN_GAP)


def test_crossed_pairs_are_uncrossed():
    sizes = {key: Size(50, 40) for key in ("a", "b", "to b", "to a")}
    layout = place(sizes, [Edge("a", "to a", "data"), Edge("b", "to b", "data")])
    assert (layout.boxes["a"].y < layout.boxes["b"].y) == (layout.boxes["to a"].y < layout.boxes["to b"].y)


def test_a_line_across_a_column_has_a_lane_beside_the_box_there():
    layout = place({key: Size(100, 40) for key in "abc"}, [edge("a b"), edge("b c"), edge("a c")])
    _, lane, _ = layout.routes[2]
    b = layout.boxes["b"]
    assert (lane[0], lane[2]) == (b.x, b.x + b.width)
    assert lane[1] == lane[3]
    assert not b.y - 5 < lane[1] < b.y + b.height + 5


def test_lines_into_one_box_arrive_apart_in_the_order_that_they_come_from():
    sizes = {"a": Size(50, 40), "b": Size(50, 40), "c": Size(50, 40), "d": Size(50, 60)}
    layout = place(sizes, [edge("a d"), edge("b d"), edge("c d")])
    arrivals = [route[-1][3] for route in layout.routes]
    starts = [route[0][1] for route in layout.routes]
    assert sorted(arrivals) == [layout.boxes["d"].y + each for each in (15, 30, 45)]
    assert sorted(range(3), key=arrivals.__getitem__) == sorted(range(3), key=starts.__getitem__)
