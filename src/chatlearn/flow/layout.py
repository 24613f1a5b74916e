"""Where the boxes and lines of a drawing go: columns from left to right, few crossings, nothing on top of a box.

The method is the usual one for layered drawings (Sugiyama, Tagawa and Toda, 1981): each box stands one column right of
the last one that it follows; a line across several columns gets a lane of its own in each; the order inside of a column
follows the neighbours' means; heights then follow the neighbours as closely as that order allows.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

COLUMN_GAP = 84.0
ROW_GAP = 22.0
LANE_HEIGHT = 6.0
_SWEEPS = 12


class Size(NamedTuple):
    """Of a box, in pixels."""

    width: float
    height: float


class Edge(NamedTuple):
    """A line from one box to another; of several kinds, each has lanes of its own."""

    source: str
    target: str
    kind: str


@dataclass(frozen=True)
class Box:
    """A placed box: its left, its top and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """Height of its centre line."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """A drawing's geometry.

    Attributes:
        boxes: by key.
        routes: per edge, in the order given, stretches (left, y, right, y) that a line runs straight along; between
            two of them it swings from one height to the other.
        width: of everything.
        height: of everything.
    """

    boxes: Mapping[str, Box]
    routes: Sequence[Sequence[tuple[float, float, float, float]]]
    width: float
    height: float


def place(sizes: Mapping[str, Size], edges: Sequence[Edge]) -> Layout:
    """Places boxes so that every edge runs from left to right.

    Args:
        sizes: of the boxes, by key, each after all that it has edges from.
        edges: between them.
    """
    columns_of = _columns(sizes, edges)
    chains = [_chain(edge, columns_of) for edge in edges]
    heights = {key: size.height for key, size in sizes.items()}
    heights |= {key: LANE_HEIGHT for chain in chains for key in chain[1:-1]}
    links = _Links(dict.fromkeys((a, b) for chain in chains for a, b in pairwise(chain)))
    columns: list[list[str]] = [[] for _ in range(max(columns_of.values(), default=0) + 1)]
    for key, column in columns_of.items():
        columns[column].append(key)
    columns = _ordered(columns, links)
    tops = _heights(columns, links, heights)
    lefts, widths = _column_spans(columns, sizes)
    boxes = {
        key: Box(lefts[c] + (widths[c] - size.width) / 2, tops[key], *size)
        for key, size in sizes.items()
        for c in [columns_of[key]]
    }
    routes = _routes(chains, edges, boxes, tops, columns_of, lefts, widths)
    height = max((box.y + box.height for box in boxes.values()), default=0.0)
    lanes = max((tops[key] + LANE_HEIGHT for chain in chains for key in chain[1:-1]), default=0.0)
    return Layout(boxes, routes, lefts[-1] + widths[-1], max(height, lanes))


def _columns(sizes: Mapping[str, Size], edges: Sequence[Edge]) -> dict[str, int]:
    """Column of each box: one right of the last that it follows."""
    columns: dict[str, int] = {}
    for key in sizes:
        columns[key] = max((columns[edge.source] + 1 for edge in edges if edge.target == key), default=0)
    return columns


def _chain(edge: Edge, columns: dict[str, int]) -> list[str]:
    """Source, lanes and target of an edge. Edges of one kind from one box share lanes; new lanes get a column."""
    chain = [edge.source]
    for column in range(columns[edge.source] + 1, columns[edge.target]):
        lane = f"lane {edge.source} {edge.kind} {column}"
        columns[lane] = column
        chain.append(lane)
    return [*chain, edge.target]


class _Links:
    """Which boxes and lanes stand in neighbouring columns and are joined by a line."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._before: dict[str, list[str]] = {}
        self._after: dict[str, list[str]] = {}
        for left, right in pairs:
            self._before.setdefault(right, []).append(left)
            self._after.setdefault(left, []).append(right)

    def mean(self, key: str, places: Mapping[str, float], forward: bool) -> float:
        """Mean place of the neighbours on the left (``forward``) or right; the own place where there are none."""
        found = (self._before if forward else self._after).get(key, ())
        return sum(places[each] for each in found) / len(found) if found else places[key]

    def crossings(self, columns: Sequence[Sequence[str]]) -> int:
        """Pairs of lines between the same two columns that cross."""
        count = 0
        for column, following in pairwise(columns):
            places = {key: i for i, key in enumerate(following)}
            ends = [sorted(places[right] for right in self._after.get(left, ())) for left in column]
            flat: list[int] = []
            for each in ends:
                count += sum(len(flat) - bisect_right(flat, end) for end in each)
                for end in each:
                    insort(flat, end)
        return count


def _ordered(columns: list[list[str]], links: _Links) -> list[list[str]]:
    """Sorts each column by the mean place of its neighbours, back and forth; keeps the order with fewest crossings."""
    best, fewest = columns, links.crossings(columns)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        columns = [list(column) for column in columns]
        places: dict[str, float] = {key: i for column in columns for i, key in enumerate(column)}
        for column in columns if forward else reversed(columns):
            means = {key: links.mean(key, places, forward) for key in column}
            column.sort(key=means.__getitem__)
            places |= {key: i for i, key in enumerate(column)}
        if (count := links.crossings(columns)) < fewest:
            best, fewest = columns, count
    return best


def _heights(columns: Sequence[Sequence[str]], links: _Links, heights: Mapping[str, float]) -> dict[str, float]:
    """Top of every box and lane: near the neighbours' centres, in order, without overlap, from 0."""
    centres: dict[str, float] = {}
    for column in columns:
        centres |= _stacked(dict.fromkeys(column, 0.0), heights)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for column in columns if forward else reversed(columns):
            centres |= _stacked({key: links.mean(key, centres, forward) for key in column}, heights)
    tops = {key: centre - heights[key] / 2 for key, centre in centres.items()}
    highest = min(tops.values(), default=0.0)
    return {key: top - highest for key, top in tops.items()}


def _stacked(wanted: Mapping[str, float], heights: Mapping[str, float]) -> dict[str, float]:
    """Centres closest to the wanted ones (least squares) that keep order and gaps: pooling of adjacent violators."""
    offsets: list[float] = []
    bottom = 0.0
    for key in wanted:
        offsets.append(bottom + heights[key] / 2)
        bottom += heights[key] + ROW_GAP
    pools: list[tuple[float, int]] = []  # mean of a run of boxes that touch, and their number
    for want, offset in zip(wanted.values(), offsets, strict=True):
        mean, count = want - offset, 1
        while pools and pools[-1][0] > mean:
            previous, number = pools.pop()
            mean, count = (previous * number + mean * count) / (number + count), number + count
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return {key: mean + offset for key, mean, offset in zip(wanted, means, offsets, strict=True)}


def _column_spans(columns: list[list[str]], sizes: Mapping[str, Size]) -> tuple[list[float], list[float]]:
    """Left and width of each column."""
    widths = [max((sizes[key].width for key in column if key in sizes), default=0.0) for column in columns]
    return [sum(widths[:i]) + i * COLUMN_GAP for i in range(len(widths))], widths


def _routes(
    chains: Sequence[Sequence[str]],
    edges: Sequence[Edge],
    boxes: Mapping[str, Box],
    tops: Mapping[str, float],
    columns_of: Mapping[str, int],
    lefts: Sequence[float],
    widths: Sequence[float],
) -> list[list[tuple[float, float, float, float]]]:
    ports = _ports(chains, boxes, tops)
    routes: list[list[tuple[float, float, float, float]]] = []
    for number, (chain, edge) in enumerate(zip(chains, edges, strict=True)):
        source, target = boxes[edge.source], boxes[edge.target]
        out, into = columns_of[edge.source], columns_of[edge.target]
        route = [(source.x + source.width, source.middle, lefts[out] + widths[out], source.middle)]
        for lane in chain[1:-1]:
            column, y = columns_of[lane], tops[lane] + LANE_HEIGHT / 2
            route.append((lefts[column], y, lefts[column] + widths[column], y))
        route.append((lefts[into], ports[number], target.x, ports[number]))
        routes.append(route)
    return routes


def _ports(chains: Sequence[Sequence[str]], boxes: Mapping[str, Box], tops: Mapping[str, float]) -> dict[int, float]:
    """Height at which each edge enters its target, in the order of the heights that they come from."""
    ports: dict[int, float] = {}
    for key, box in boxes.items():
        arriving = [number for number, chain in enumerate(chains) if chain[-1] == key]
        before = {n: boxes[k].middle if (k := chains[n][-2]) in boxes else tops[k] for n in arriving}
        arriving.sort(key=before.__getitem__)
        step = box.height / (len(arriving) + 1)
        ports |= {number: box.y + step * (i + 1) for i, number in enumerate(arriving)}
    return ports
