"""``chatlearn checkpoints``: what is there, what is wrong with it, and what can go."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from chatlearn.checkpoint import run_lock
from chatlearn.checkpoint.manifest import damage, read_manifest
from chatlearn.checkpoint.store import CheckpointStore, episode_of, run_of
from chatlearn.checkpoint.verify import verify
from chatlearn.cli.places import POINTERS, Place, place_of
from chatlearn.errors import CheckpointError


@dataclass(frozen=True)
class Row:
    """What the table says of a checkpoint.

    Attributes:
        path: of its folder.
        written: when; ``None`` where that can't be seen.
        num_bytes: of all files.
        num_files: that it is made of.
        marks: pointers that name it.
        problems: one line for each; empty if there are none.
    """

    path: Path
    written: datetime | None
    num_bytes: int
    num_files: int
    marks: tuple[str, ...]
    problems: tuple[str, ...]


def checkpoints_command(what: str, options: argparse.Namespace) -> int:
    """Lists the checkpoints of a run, removes some first if asked to.

    Returns:
        1 if one is damaged, or was asked to go and had to stay; else 0.

    Raises:
        CheckpointError: the path is none of checkpoints, or another process writes there.
    """
    place = place_of(what)
    store = CheckpointStore(place.folder)
    removes = bool(options.remove) or options.keep is not None or options.clean
    kept: list[str] = []
    if removes:
        if place.only is not None:
            raise CheckpointError(f"{place.only} is one checkpoint; to remove some, give the folder of the run.")
        with _locked(place, store, options.clean):
            kept = _removed(place, store, options)
    rows = [_row(path, store, options.verify) for path in ([place.only] if place.only else store.all())]
    print(_table(place, rows, options.verify))
    for line in kept:
        print(line, file=sys.stderr)
    return 1 if kept or any(row.problems for row in rows) else 0


def _removed(place: Place, store: CheckpointStore, options: argparse.Namespace) -> list[str]:
    """Removes what was asked for; returns why what had to stay stayed."""
    wanted = [_found(store, episode, place) for episode in dict.fromkeys(options.remove or ())]
    if options.keep is not None:
        spared = {store.pointed(pointer) for pointer in POINTERS}
        older = store.all()[: -options.keep]
        wanted += [path for path in older if path.name not in spared and path not in wanted]
    if options.clean:
        _clean(place, store)
    kept: list[str] = []
    for path in wanted:
        try:
            store.remove(path)
            print(f"removed {path}")
        except CheckpointError as error:
            kept.append(f"CheckpointError: {error}")
    return kept


def _found(store: CheckpointStore, episode: int, place: Place) -> Path:
    """The checkpoint after so many episodes."""
    there = {episode_of(path): path for path in store.all()}
    if episode not in there:
        episodes = ", ".join(map(str, there)) or "none"
        raise CheckpointError(
            f"{place.folder} has no checkpoint of episode {episode}, so nothing is removed. It has: {episodes}."
        )
    return there[episode]


def _clean(place: Place, store: CheckpointStore) -> None:
    left = leftovers(place.folder)
    before = set(store.all())
    store.recover()
    put_back = [path for path in store.all() if path not in before]
    for path in left:
        if not path.exists() and path not in before:
            print(f"removed {path}")
    for path in put_back:
        print(f"put back {path}, which a killed write had moved aside")


def leftovers(folder: Path) -> list[Path]:
    """What killed writes have left in a folder of checkpoints."""
    return sorted(path for path in folder.glob(".*") if path.name.endswith((".partial", ".replaced")))


@contextlib.contextmanager
def _locked(place: Place, store: CheckpointStore, is_needed: bool) -> Generator[None]:
    """Holds the locks of all runs that write to the folder.

    Raises:
        CheckpointError: another process has one of them, or none is known though one is needed.
    """
    runs: set[Path | None] = {place.run}
    for checkpoint in store.all():
        with contextlib.suppress(CheckpointError):  # a damaged one does not say whose it is
            runs.add(run_of(checkpoint))
    known = sorted(run for run in runs if run is not None and run.is_dir())
    if is_needed and not known:
        raise CheckpointError(
            f"Nothing in {place.folder} says which run writes there, so what looks left over may be in use. Give the "
            f"folder of the run in place of its checkpoints."
        )
    with contextlib.ExitStack() as stack:
        for run in known:
            try:
                stack.callback(run_lock.claim(run).release)
            except OSError as error:
                raise CheckpointError(f"{run} can't be locked: {error.strerror}. Nothing was removed.") from None
        yield


def _row(path: Path, store: CheckpointStore, deep: bool) -> Row:
    problems = verify(path) if deep else damage(path, deep=False)
    num_bytes = num_files = 0
    written: datetime | None = None
    try:
        files = read_manifest(path)
        num_bytes, num_files = sum(file.nbytes for file in files.values()), len(files) + 1
        written = datetime.fromtimestamp((path / "manifest.json").stat().st_mtime)
    except (CheckpointError, OSError):  # the problems say so
        found = [file for file in path.rglob("*") if file.is_file()]
        num_bytes, num_files = sum(file.stat().st_size for file in found), len(found)
    marks = tuple(pointer for pointer in POINTERS if store.pointed(pointer) == path.name)
    return Row(path, written, num_bytes, num_files, marks, tuple(problems))


def _table(place: Place, rows: Sequence[Row], deep: bool) -> str:
    """The table, what is wrong, and what is left over."""
    lines: list[str] = []
    if rows:
        head = ("episode", "written", "size", "files", "marks", "state" if deep else "")
        cells = [head, *(_cells(row, deep) for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        sides = (str.rjust, str.ljust, str.rjust, str.rjust, str.ljust, str.ljust)
        for line in cells:
            columns = zip(sides, line, widths, strict=True)
            lines.append("  ".join(side(cell, width) for side, cell, width in columns).rstrip())
    else:
        lines.append(f"{place.folder} holds no checkpoint yet.")
    for row in rows:
        lines += [f"damaged: {problem}" for problem in row.problems]
    left = [] if place.only else leftovers(place.folder)
    if left:
        lines.append(f"left by killed writes (--clean removes them): {', '.join(path.name for path in left)}")
    return "\n".join(lines)


def _cells(row: Row, deep: bool) -> tuple[str, ...]:
    written = "" if row.written is None else row.written.isoformat(sep=" ", timespec="seconds")
    state = "damaged" if row.problems else "good" if deep else ""
    episode = row.path.name.rpartition("-")[2].removesuffix(".replaced").lstrip("0") or "0"
    return (episode, written, size(row.num_bytes), str(row.num_files), ", ".join(row.marks), state)


def size(num_bytes: int) -> str:
    """Bytes for people: ``3.4 MB``."""
    value, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
