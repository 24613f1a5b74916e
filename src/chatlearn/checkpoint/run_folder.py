"""The folder of a run: found, numbered, never overwritten; and what a resumed run does with the rows that came after
its checkpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from chatlearn.checkpoint.store import CheckpointStore
from chatlearn.errors import CheckpointError


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Attributes:
        path: absolute.
        checkpoint: to go on from; ``None`` starts at the beginning.
        finished: the run was ended before; nothing is left to do.
        note: one line for the user, or empty.
    """

    path: Path
    checkpoint: Path | None = None
    finished: bool = False
    note: str = ""


def claim_run_folder(output_dir: str, exp_name: str, resume: str) -> RunFolder:
    """Finds or makes the folder of a run.

    Args:
        output_dir: parent of all runs.
        exp_name: name of the run; ``<exp_name>-2``, ``-3``, … where it is taken.
        resume: ``never`` makes a new folder; ``auto`` goes on with the highest-numbered run of that name, if there is
            one; otherwise the path
            of a run folder or of a checkpoint.

    Raises:
        CheckpointError: the path to resume from is neither.
    """
    if resume == "never":
        return _new(Path(output_dir).absolute(), exp_name)
    if resume != "auto":
        return _given(Path(resume).absolute())
    runs = _runs(Path(output_dir).absolute(), exp_name)
    return _continued(runs[-1]) if runs else _new(Path(output_dir).absolute(), exp_name)


def discard_rows(path: Path, last_episode: int) -> None:
    """Keeps the rows of a JSONL file up to an episode; later ones, and a torn last line, move to
    ``<name>.discarded.jsonl``.
    """
    if not path.exists():
        return
    kept, dropped = [], []
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        (kept if _episode(line) <= last_episode else dropped).append(line + "\n")
    if dropped:
        with path.with_suffix(".discarded.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(dropped)
    if text != "".join(kept):
        aside = path.with_suffix(".partial")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.rename(path)


def _episode(line: str) -> float:
    try:
        return json.loads(line)["episode"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _new(parent: Path, name: str) -> RunFolder:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            continue
        taken = f"{parent / name} is taken. " if number > 1 else ""
        note = f"{taken}This run writes to {path}."
        return RunFolder(path, note=note)


def _runs(parent: Path, name: str) -> list[Path]:
    """Folders of the runs of one name, by number."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = [
        (int(match[1] or 1), path)
        for path in parent.glob("*")
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def _given(path: Path) -> RunFolder:
    if (path / "run.json").is_file():
        return RunFolder(path.parent.parent, path, note=f"Going on from {path}.")
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            f"runtime.resume: {path} is neither a run folder nor a checkpoint. Give the folder of a run (it holds "
            "config.yaml), one of its checkpoints/episode-…, or `auto`."
        )
    return _continued(path)


def _continued(path: Path) -> RunFolder:
    result = path / "result.json"
    if result.is_file() and json.loads(result.read_text(encoding="utf-8")).get("status") == "finished":
        return RunFolder(path, finished=True, note=f"{path} is finished; there is nothing to resume.")
    checkpoint = CheckpointStore(path / "checkpoints").latest()
    if checkpoint is not None:
        return RunFolder(path, checkpoint, note=f"Going on from {checkpoint}.")
    begun = (path / "metrics.jsonl").exists()
    return RunFolder(path, note=f"{path} has no checkpoint yet; starting again in that folder." if begun else "")
