"""What a run folder says of single samples: their logged lines, and the episodes that they were drawn in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatlearn.config.runtime import RuntimeConfig
from chatlearn.guards import is_dict

Lines = dict[int, dict[str, Any]]
"""Sample id -> its line."""


def read_lines(file: Path) -> Lines:
    """The samples of a file, in its order; empty without the file. A torn line is left out."""
    return {row["sample_id"]: row for row in _rows(file, "sample_id")}


def episode_file(run: Path, episode: int) -> Path:
    """Where the samples of an episode are logged, by its number from 1."""
    return run / "samples" / f"episode-{episode:06d}.jsonl"


def logged_in(run: Path, sample: int) -> int | None:
    """The episode whose log holds a sample."""
    for file in sorted((run / "samples").glob("episode-*.jsonl")):
        number = re.fullmatch(r"episode-(\d+)", file.stem)
        if number and sample in read_lines(file):
            return int(number[1])
    return None


def drawn(run: Path, runtime: RuntimeConfig) -> Iterator[tuple[int, range]]:
    """Each complete episode, and the ids of the samples that were drawn in it: as many as an episode has, and those of
    its further rounds. Nothing for a run whose metrics do not begin with its first episode.

    Args:
        run: its folder.
        runtime: its settings.
    """
    position = runtime.consumed_samples
    further = runtime.refill_round_size or runtime.sample_per_episode
    rows = [row for row in _rows(run / "metrics.jsonl", "episode") if row["episode"] > 0]
    for number, row in enumerate(rows, 1):
        if row["episode"] != number:
            return
        begin = position
        position += runtime.sample_per_episode + int(row.get("refill/rounds", 0)) * further
        yield number, range(begin, position)


def first_episode(run: Path) -> int:
    """The first episode of a run's metrics, from 1: later where the run went on from another's checkpoint."""
    return next((row["episode"] for row in _rows(run / "metrics.jsonl", "episode") if row["episode"] > 0), 1)


def _rows(file: Path, needed: str) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if is_dict(row) and needed in row:
            yield row
