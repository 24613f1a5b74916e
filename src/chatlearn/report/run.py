"""What a report reads from a run folder. Whatever is missing is empty here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from chatlearn.errors import CheckpointError
from chatlearn.guards import is_dict
from chatlearn.observe.spans import TrackLoad, summarize

_MARKS = ("config.yaml", "metrics.jsonl", "result.json")
MAX_SAMPLES = 6
"""Samples of an episode that a report shows."""

Points = list[tuple[float, float]]
"""(episode, value) in order; a value that is not finite is NaN"""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its name, what it takes on the disk, and the pointers to it (``latest``, ``best``)."""

    name: str
    num_bytes: int
    pointers: tuple[str, ...]


class RunData:
    """Reads the files of a run folder, each when it is first asked for.

    Raises:
        CheckpointError: the folder is not that of a run.
    """

    def __init__(self, folder: Path) -> None:
        if not any((folder / name).is_file() for name in _MARKS):
            what = "holds none of " + ", ".join(_MARKS) if folder.is_dir() else "is no folder"
            raise CheckpointError(
                f"{folder.absolute()} is not the folder of a run: it {what}. Give a folder such as runs/<exp_name>."
            )
        self.folder = folder

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``; a line that a crash left torn is left out."""
        return list(_json_lines(self.folder / "metrics.jsonl"))

    @cached_property
    def result(self) -> dict[str, Any]:
        """``result.json``."""
        return _object(_text(self.folder / "result.json"))

    @cached_property
    def config_lines(self) -> list[str]:
        """``config.yaml`` line by line, sources included."""
        return _text(self.folder / "config.yaml").splitlines()

    @cached_property
    def series(self) -> dict[str, Points]:
        """Name of a metric -> its points, in the order of the first row that has it."""
        found: dict[str, Points] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in ("episode", "non_finite") and (value is None or isinstance(value, (int, float))):
                    number = float(value) if value is not None and math.isfinite(value) else math.nan
                    found.setdefault(name, []).append((row["episode"], number))
        return found

    @cached_property
    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """Name of the first and the last file of samples -> its first samples."""
        files = sorted((self.folder / "samples").glob("*.jsonl"))
        ends = dict.fromkeys([*files[:1], *files[-1:]])
        return {file.stem: list(islice(_json_lines(file, "sample_id"), MAX_SAMPLES)) for file in ends}

    @cached_property
    def loads(self) -> dict[str, TrackLoad]:
        """Work and waiting of each replica, from the trace."""
        return summarize(self.folder / "trace.json")

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        folder = self.folder / "checkpoints"
        targets = {name: _text(folder / name).strip() for name in ("latest", "best")}
        names = [path.parent.name for path in sorted(folder.glob("episode-*/run.json"))]
        return [
            Checkpoint(name, _size(folder / name), tuple(each for each, target in targets.items() if target == name))
            for name in names
        ]


def _json_lines(path: Path, needed: str = "episode") -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that have a certain key."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (row for row in map(_object, file) if needed in row)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if is_dict(found) else {}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
