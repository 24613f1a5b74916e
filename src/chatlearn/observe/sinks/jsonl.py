"""``metrics.jsonl``, which every run has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from chatlearn.observe.sinks.base import SinkContext


class JsonlSink:
    """``metrics.jsonl``: one JSON object a line, flushed line by line.

    Keys under ``time/`` are the only ones that differ between equal runs. JSON has no NaN and no infinity: such a value
    is written as ``null``, and ``non_finite`` holds it as text that ``float()`` reads, by the name of its metric.
    """

    note = ""

    def __init__(self, context: SinkContext) -> None:
        self._file = (context.folder / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Appends a line."""
        self._file.write(json_line({"episode": episode, **row}))
        self._file.flush()

    def close(self, status: str = "finished") -> None:
        """Closes the file."""
        self._file.close()


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of valid JSON."""
    odd = {name: str(value) for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    if odd:
        row = {**{name: None if name in odd else value for name, value in row.items()}, "non_finite": odd}
    return json.dumps(row, allow_nan=False) + "\n"
