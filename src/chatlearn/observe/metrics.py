"""Metrics of an episode, reduced from what modules log call by call."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from chatlearn.errors import ModuleError

Logged = tuple[str, float, str, float]
"""(name, value, reduction, number of samples that the value stands for)"""

Values = Sequence[tuple[float, float]]
"""(value, number of samples that it stands for), in order"""

OWN_KEYS = frozenset({"episode", "num_samples", "global_batches", "weight_version", "non_finite"})
"""Keys of a row that are no metrics of anybody; ``time/…_seconds`` and ``time/samples_per_second`` are others."""


def is_own_key(name: str) -> bool:
    """Whether the run itself writes this key of a row."""
    return name in OWN_KEYS or (name.startswith("time/") and name.endswith(("_seconds", "/samples_per_second")))


def as_number(value: Any) -> float | None:
    """A number of Python, numpy or torch (also as an array or tensor without dimensions) as Python has it.

    Returns:
        An ``int`` or a ``float``; ``None`` for what is no real number, or too large for a float.
    """
    if not isinstance(value, numbers.Real) and getattr(value, "ndim", None) == 0:
        try:
            value = value.item()
        except (AttributeError, RuntimeError, TypeError, ValueError):  # a tensor of the device "meta" holds nothing
            return None
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return int(value) if isinstance(value, numbers.Integral) else number


class MetricBuffer:
    """Collects logged values and reduces them by name, in the order in which they came.

    A NaN makes the reduced value NaN, whichever the reduction: something went wrong, and a mean or a maximum of the
    rest would hide it. What stands for no samples has no weight in a mean, NaN or not; a mean over no samples at all
    is left out.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, list[tuple[float, float]]]] = {}

    def add(self, logged: Iterable[Logged], prefix: str = "") -> None:
        """Takes what one call logged.

        Raises:
            ModuleError: one name is logged with two reductions.
        """
        for name, value, reduction, rows in logged:
            known, values = self._values.setdefault(f"{prefix}{name}", (reduction, []))
            if known != reduction:
                raise ModuleError(
                    f"The metric {prefix}{name} is logged with the reduction {known!r} and with {reduction!r}. Log one "
                    "of the two under another name."
                )
            values.append((value, rows))

    def take(self) -> dict[str, float]:
        """The reduced metrics, sorted by name; empties the buffer."""
        values, self._values = self._values, {}
        reduced = {name: REDUCTIONS[values[name][0]](values[name][1]) for name in sorted(values)}
        return {name: value for name, value in reduced.items() if value is not None}


def _mean(values: Values) -> float | None:
    weight = sum(rows for _, rows in values)
    return sum(value * rows for value, rows in values if rows) / weight if weight else None


def _sum(values: Values) -> float:
    return sum(value for value, _ in values)


def _extreme(choose: Callable[[Iterable[float]], float]) -> Callable[[Values], float]:
    def reduce(values: Values) -> float:
        found = [value for value, _ in values]
        return math.nan if any(map(math.isnan, found)) else choose(found)

    return reduce


REDUCTIONS: dict[str, Callable[[Values], float | None]] = {
    "mean": _mean,
    "sum": _sum,
    "max": _extreme(max),
    "min": _extreme(min),
}
"""Name of a reduction -> what it does; ``mean`` is weighted by samples."""
