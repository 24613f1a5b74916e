"""Which metrics a person wants to see first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADLINES = ("reward", "accuracy", "kl", "loss")
"""Last parts of metric names, in order of display."""


def headline(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row that belong on one line: the first of each headline, evaluations under their own name."""
    found: dict[str, float] = {}
    for name in HEADLINES:
        for key, value in row.items():
            label = f"eval {name}" if key.startswith("eval/") else name
            if key.rsplit("/", 1)[-1] == name and label not in found:
                found[label] = value
    return found
