"""Small charts as SVG. Colours come from the page's style sheet, so that they follow its light and dark scheme."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from chatlearn.report.run import Points

_WIDTH, _HEIGHT = 360, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 22
_MAX_POINTS = 400
NUM_COLOURS = 6
"""Colours of the style sheet, ``c0`` and so on."""


def line_chart(series: Mapping[str, Points], dotted: Sequence[str] = (), levels: Sequence[float] = ()) -> str:
    """Lines over episodes in one frame.

    Args:
        series: label -> points; NaN interrupts a line.
        dotted: labels whose points are marked, since they are few.
        levels: values that are marked by a line across the frame, where they lie in it.

    Returns:
        An ``<svg>``, or an empty text where no value is finite.
    """
    finite = [point for points in series.values() for point in points if math.isfinite(point[1])]
    if not finite:
        return ""
    x = _Scale([episode for episode, _ in finite], _LEFT, _WIDTH - _RIGHT)
    y = _Scale([value for _, value in finite], _HEIGHT - _BOTTOM, _TOP, padding=0.06)
    drawn = [_axes(x, y), *(_level(level, y) for level in levels if y.low <= level <= y.high)]
    for index, (label, points) in enumerate(series.items()):
        drawn.append(_line(label, thinned(points), x, y, index % NUM_COLOURS, label in dotted))
    label = escape(", ".join(series))
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def band_chart(label: str, values: Sequence[tuple[float, Sequence[float]]]) -> str:
    """Distributions over episodes: the median as a line, quartiles and the whole range as bands.

    Args:
        label: what the values are.
        values: (episode, finite values), episodes in order, none of them without values.

    Returns:
        An ``<svg>``, or an empty text where there are no episodes.
    """
    if not values:
        return ""
    points = [(episode, [quantile(sample, share) for share in (0, 0.25, 0.5, 0.75, 1)]) for episode, sample in values]
    x = _Scale([episode for episode, _ in points], _LEFT, _WIDTH - _RIGHT)
    y = _Scale([value for _, found in points for value in found], _HEIGHT - _BOTTOM, _TOP, padding=0.06)
    drawn = [_axes(x, y)]
    for kind, low, high in (("range", 0, 4), ("quartiles", 1, 3)):
        up = [f"{x(episode):.1f},{y(found[high]):.1f}" for episode, found in points]
        down = [f"{x(episode):.1f},{y(found[low]):.1f}" for episode, found in reversed(points)]
        drawn.append(f'<polygon class="band {kind} c0" points="{" ".join(up + down)}"/>')
    medians = [(episode, found[2]) for episode, found in points]
    words = [f"{number(f[2])} ({number(f[1])} to {number(f[3])}; {number(f[0])} to {number(f[4])})" for _, f in points]
    drawn.append(_line(f"median {label}", medians, x, y, 0, False, words))
    label = escape(label)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def stacked_bars(bars: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str]) -> str:
    """One bar a column, made of parts.

    Args:
        bars: (label of the bar, part -> seconds).
        names: all parts, from the bottom up.
    """
    width, height = 740, 200
    y = _Scale([0.0, *(sum(parts.values()) for _, parts in bars)], height - _BOTTOM, _TOP)
    step = (width - _LEFT - _RIGHT) / max(len(bars), 1)
    drawn = [_grid(y, width)]
    for column, (label, parts) in enumerate(bars):
        top = 0.0
        left = _LEFT + column * step
        for index, name in enumerate(names):
            bottom, top = top, top + parts.get(name, 0.0)
            box = f'x="{left:.2f}" width="{max(step - 1, 0.5):.2f}" y="{y(top):.2f}" height="{y(bottom) - y(top):.2f}"'
            title = f"{label}: {name} {number(parts.get(name, 0.0))} s"
            drawn.append(f'<rect class="c{index % NUM_COLOURS}" {box}><title>{escape(title)}</title></rect>')
    for place, (label, _) in ((0, bars[0]), (1, bars[-1])):
        anchor = "end" if place else "start"
        at = width - _RIGHT if place else _LEFT
        drawn.append(f'<text x="{at}" y="{height - 6}" text-anchor="{anchor}">{escape(label)}</text>')
    return f'<svg class="bars" viewBox="0 0 {width} {height}" role="img">{"".join(drawn)}</svg>'


def share_bar(busy: float, waiting: float) -> str:
    """A horizontal bar: work and waiting as shares (0 to 1) of the run; waits may add up to more than the run."""
    work, wait = min(max(busy, 0.0), 1.0) * 200, min(max(waiting, 0.0), 1.0) * 200
    return (
        '<svg class="share" viewBox="0 0 200 14" role="img"><rect class="frame" width="200" height="14" rx="2"/>'
        f'<rect class="c0" width="{work:.1f}" height="7"/><rect class="c1" y="7" width="{wait:.1f}" height="7"/></svg>'
    )


def thinned(points: Points, limit: int = _MAX_POINTS) -> Points:
    """At most about ``limit`` points: of each stretch its lowest and its highest, so that no peak is lost."""
    if len(points) <= limit:
        return points
    size = math.ceil(2 * len(points) / limit)
    kept: Points = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {part.index(min(part, key=_value)), part.index(max(part, key=_value))}
        kept += [part[index] for index in sorted(ends)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def number(value: float) -> str:
    """A number for people: four significant digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


class _Scale:
    """From values to pixels, with round ticks.

    Args:
        values: finite; the scale covers them.
        first: pixel of the smallest.
        last: pixel of the largest.
        padding: share of the range to add on both sides.
    """

    def __init__(self, values: Sequence[float], first: float, last: float, padding: float = 0.0) -> None:
        low, high = min(values), max(values)
        room = (high - low) * padding or (0.0 if high > low else max(abs(high), 1e-9) * 0.1)
        self.low, self.high = low - room, high + room
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._first + share * (self._last - self._first)

    def ticks(self) -> list[float]:
        """Three to five round values."""
        rough = (self.high - self.low) / 4
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _value(point: tuple[float, float]) -> float:
    return -math.inf if math.isnan(point[1]) else point[1]


def _grid(y: _Scale, width: int) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{_LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in y.ticks()
    )


def _level(value: float, y: _Scale) -> str:
    return f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'


def _axes(x: _Scale, y: _Scale) -> str:
    episodes = [tick for tick in x.ticks() if tick == int(tick)]
    labels = [f'<text x="{x(tick):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick:.0f}</text>' for tick in episodes]
    return _grid(y, _WIDTH) + "".join(labels)


def _line(
    label: str, points: Points, x: _Scale, y: _Scale, colour: int, dotted: bool, words: Sequence[str] = ()
) -> str:
    """A path in pieces between the gaps, and what the page's script shows under the pointer: ``words`` or numbers."""
    pieces: list[str] = []
    pen = "M"
    for episode, value in points:
        if math.isfinite(value):
            pieces.append(f"{pen}{x(episode):.1f} {y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    whole = [(episode, value) for episode, value in points if math.isfinite(value)]
    marks = whole if dotted or len(whole) < 3 else []
    dots = "".join(f'<circle cx="{x(episode):.1f}" cy="{y(value):.1f}" r="2.4"/>' for episode, value in marks)
    words = words or [number(value) for _, value in whole]
    shown = [[round(x(e), 1), round(y(value), 1), e, word] for (e, value), word in zip(whole, words, strict=True)]
    data = f'data-label="{escape(label)}" data-points="{escape(json.dumps(shown))}"'
    return f'<g class="line c{colour}" {data}><path fill="none" d="{"".join(pieces)}"/>{dots}</g>'
