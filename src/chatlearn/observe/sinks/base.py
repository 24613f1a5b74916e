"""What a sink is, what it gets to know of its run, and what several sinks share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from chatlearn.guards import is_mapping


@dataclass(frozen=True)
class SinkContext:
    """What a sink is constructed with.

    Attributes:
        folder: of the run.
        first_episode: the first that will be written, from 1; more than 1 after a resume.
        exp_name: of the run.
        config: resolved, plain data.
    """

    folder: Path
    first_episode: int
    exp_name: str
    config: Mapping[str, Any]


class Sink(Protocol):
    """Takes rows of metrics.

    Attributes:
        note: one line for the user on where the rows go, or empty.
    """

    note: str

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Takes the row of a complete episode (counted from 1)."""
        ...

    def close(self, status: str = "finished") -> None:
        """Flushes and closes; ``status`` is how the run ended: ``finished``, ``interrupted`` or ``failed``."""
        ...


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row. Services take nothing else."""
    return {name: float(value) for name, value in row.items() if isinstance(value, Real)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by dotted key."""
    for key, value in tree.items():
        if is_mapping(value):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def remembered_id(context: SinkContext, sink: str) -> str | None:
    """The id under which a service knows this run, from before a resume.

    A run that starts again from its first episode is another one to a service: its settings may differ.
    """
    return _ids(context.folder).get(sink) if context.first_episode > 1 else None


def remember_id(context: SinkContext, sink: str, value: str) -> None:
    """Keeps an id in ``sinks.json`` of the run folder."""
    text = json.dumps({**_ids(context.folder), sink: value}, indent=1) + "\n"
    aside = context.folder / "sinks.partial"
    aside.write_text(text, encoding="utf-8")
    aside.rename(context.folder / "sinks.json")


def _ids(folder: Path) -> dict[str, str]:
    path = folder / "sinks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
