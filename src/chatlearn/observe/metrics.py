"""Metrics of an episode, reduced from what modules log call by call."""

from __future__ import annotations

from collections.abc import Iterable

Logged = tuple[str, float, str, int]
"""(name, value, reduction, number of samples of the call)"""


class MetricBuffer:
    """Collects logged values and reduces them by name, in the order in which they came."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, list[tuple[float, int]]]] = {}

    def add(self, logged: Iterable[Logged], prefix: str = "") -> None:
        """Takes what one call logged."""
        for name, value, reduction, rows in logged:
            self._values.setdefault(f"{prefix}{name}", (reduction, []))[1].append((value, rows))

    def take(self) -> dict[str, float]:
        """The reduced metrics, sorted by name; empties the buffer."""
        values, self._values = self._values, {}
        return {name: _reduce(*values[name]) for name in sorted(values)}


def _reduce(reduction: str, values: list[tuple[float, int]]) -> float:
    if reduction == "mean":
        return sum(value * rows for value, rows in values) / max(sum(rows for _, rows in values), 1)
    return {"sum": sum, "max": max, "min": min}[reduction](value for value, _ in values)
