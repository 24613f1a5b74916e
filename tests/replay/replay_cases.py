"""What the tests of replayed samples read and write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay_modules import PROGRAM, settings


@dataclass
class Replayed:
    """What a replay has left: exit code, output, and the lines of its ``-o`` file by sample."""

    code: int
    out: str
    err: str
    lines: dict[int, str]

    def row(self, sample: int) -> list[str]:
        """The cells of a sample in the table."""
        rows = [line.split(None, 3) for line in self.out.splitlines()]
        return next(cells for cells in rows if cells and cells[0] == str(sample))


Replay = Callable[..., Replayed]


def write_program(folder: Path, text: str = PROGRAM, **runtime: Any) -> None:
    """A program and its configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(text)
    (folder / "config.yaml").write_text(json.dumps(settings(**runtime)))


def lines_of(run: Path, episode: int) -> dict[int, str]:
    """The lines of an episode's log by sample id, read without the code under test."""
    lines = (run / "samples" / f"episode-{episode:06d}.jsonl").read_text().splitlines()
    return {json.loads(line)["sample_id"]: line for line in lines}


def fingerprints(folder: Path) -> dict[str, Any]:
    """Content and time of change of everything in a folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Changes a text file."""
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
