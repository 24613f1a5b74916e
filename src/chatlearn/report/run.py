"""What a report reads from a run folder. Whatever is missing is empty here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from chatlearn.errors import CheckpointError
from chatlearn.guards import is_dict, is_list
from chatlearn.observe.spans import TrackLoad, summarize

_MARKS = ("config.yaml", "metrics.jsonl", "result.json")
MAX_SAMPLES = 6
"""Samples of an episode that a report shows in a table."""

MAX_ROWS = 512
"""Samples of an episode that are read."""

MAX_FILES = 100
"""Episodes of which samples are read."""

Points = list[tuple[float, float]]
"""(episode, value) in order; a value that is not finite is NaN"""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its name, what it takes on the disk, and the pointers to it (``latest``, ``best``)."""

    name: str
    num_bytes: int
    pointers: tuple[str, ...]


@dataclass(frozen=True)
class LoggedNumbers:
    """Numbers of the samples that were logged in an episode, those that are finite.

    Attributes:
        episode: from 1.
        rewards: of the samples that have one.
        lengths: response tokens.
        components: reward component -> its raw scores.
        finished: whether the response ended by itself.
    """

    episode: int
    rewards: list[float]
    lengths: list[float]
    components: dict[str, list[float]]
    finished: list[bool]


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
        return read_object(self.folder / "result.json")

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

    def ending_in(self, name: str, evaluations: bool = False) -> dict[str, Points]:
        """The metrics called ``name``, whichever module logs them; those of evaluations on request."""
        return {
            label: points
            for label, points in self.series.items()
            if label.rsplit("/", 1)[-1] == name
            and not _is_of_component(label, "reward", "reward_std")
            and (evaluations or not label.startswith("eval/"))
        }

    @cached_property
    def components(self) -> dict[str, Points]:
        """The metrics ``<module>/reward/<component>``: means of reward components."""
        return {label: points for label, points in self.series.items() if _is_of_component(label, "reward")}

    @cached_property
    def sample_files(self) -> list[Path]:
        """The files of samples, in order of the episodes."""
        return sorted((self.folder / "samples").glob("*.jsonl"))

    @cached_property
    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """Name of the first and the last file of samples -> its first samples."""
        return {name: rows[:MAX_SAMPLES] for name, rows in self.first_and_last.items()}

    @cached_property
    def first_and_last(self) -> dict[str, list[dict[str, Any]]]:
        """The same with ``MAX_ROWS`` samples of each file."""
        ends = dict.fromkeys([*self.sample_files[:1], *self.sample_files[-1:]])
        return {file.stem: self._samples_of(file) for file in ends}

    @cached_property
    def logged(self) -> list[LoggedNumbers]:
        """Numbers of samples, of at most ``MAX_FILES`` episodes: the first, the last, the others spread evenly."""
        files = [(int(number[0]), file) for file in self.sample_files if (number := re.findall(r"\d+$", file.stem))]
        if len(files) > MAX_FILES:
            files = [files[round(index * (len(files) - 1) / (MAX_FILES - 1))] for index in range(MAX_FILES)]
        return [_numbers(episode, self._samples_of(file)) for episode, file in files]

    def _samples_of(self, file: Path) -> list[dict[str, Any]]:
        return list(islice(_json_lines(file, "sample_id"), MAX_ROWS))

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


def finite(value: Any) -> float | None:
    """A finite number as a float; nothing for whatever else a row may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def number_in(row: Mapping[str, Any], *names: str) -> float | None:
    """The first finite number of a row under one of the names."""
    found = (finite(row.get(name)) for name in names)
    return next((value for value in found if value is not None), None)


def length_of(row: Mapping[str, Any]) -> float | None:
    """Response tokens of a sample; rows without ``length`` are counted."""
    tokens = row.get("tokens")
    counted = float(len(tokens)) if is_list(tokens) else None
    return counted if (length := number_in(row, "length")) is None else length


def reward_of(row: Mapping[str, Any]) -> float | None:
    """Reward of a sample."""
    return number_in(row, "rewards", "reward")


def components_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Reward components of a sample by name."""
    found = row.get("reward_components")
    return found if is_dict(found) else {}


def _is_of_component(label: str, *kinds: str) -> bool:
    """Whether a metric is called ``<module>/<kind>/<component>``."""
    parts = label.removeprefix("eval/").split("/")
    return len(parts) > 2 and parts[-2] in kinds


def _numbers(episode: int, rows: Sequence[Mapping[str, Any]]) -> LoggedNumbers:
    components: dict[str, list[float]] = {}
    for row in rows:
        for name, value in components_of(row).items():
            found = components.setdefault(name, [])
            found += [] if (number := finite(value)) is None else [number]
    return LoggedNumbers(
        episode,
        [reward for row in rows if (reward := reward_of(row)) is not None],
        [length for row in rows if (length := length_of(row)) is not None],
        components,
        [finished for row in rows if isinstance(finished := row.get("finished"), bool)],
    )


def _json_lines(path: Path, needed: str = "episode") -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that have a certain key."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (row for row in map(_object, file) if needed in row)


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty where there is none."""
    return _object(_text(path))


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
