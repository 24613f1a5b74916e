"""What is left of a folder when the power fails: only what was forced to the disk is there for certain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk_calls import Call

Tree = dict[str, bytes | None]
"""Path -> contents of a file, or ``None`` for a folder."""


Names = dict[int, dict[str, int]]
"""Inode of a folder -> names in it -> their inodes."""


@dataclass(frozen=True)
class _Change:
    """What one call has done to the names in a folder.

    Attributes:
        gone: names.
        new: names and inodes.
    """

    gone: frozenset[str]
    new: dict[str, int]

    def done_to(self, names: dict[str, int]) -> dict[str, int]:
        """The names with this change."""
        return {name: inode for name, inode in names.items() if name not in self.gone} | self.new


class Disk:
    """Follows a folder call by call, and keeps apart what is in memory from what is on the disk.

    A file's bytes are on the disk as they were at its last fsync; before the first one it is empty. The names in a
    folder are on the disk as they were at the folder's last fsync; besides, all later changes of names may have got
    there, or any one of them alone. All that is there at the beginning is on the disk.

    Args:
        folder: to follow.

    Attributes:
        states: what may be left: the call after which the power failed, which names have got to the disk, and the tree.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[int, int] = {}
        self._bytes: dict[int, bytes] = {}
        self._names = self._look()
        for inode, file in self._held.items():
            if inode not in self._names:
                self._bytes[inode] = _contents(file)
        self._on_disk = {inode: dict(names) for inode, names in self._names.items()}
        self._changes: dict[int, list[_Change]] = {}
        self._root = os.stat(folder).st_ino
        self._seen: set[int] = set()
        self.states: list[tuple[str, str, Tree]] = []

    def handle(self, call: Call) -> Any:
        """Does the call and adds what the power may leave behind it."""
        result = call.do()
        if not call.changes:
            return result
        before, self._names = self._names, self._look()
        for inode, names in self._names.items():
            known = before.get(inode, {})
            gone, new = frozenset(known.keys() - names.keys()), dict(names.items() - known.items())
            if gone or new:
                self._changes.setdefault(inode, []).append(_Change(gone, new))
        if call.function in ("fsync", "fdatasync"):
            self._force(os.stat(self._folder / call.path).st_ino)
        for which, on_disk in self._may_be_there():
            tree = dict(self._tree(on_disk, self._root, ""))
            if (key := hash(tuple(sorted(tree.items())))) not in self._seen:
                self._seen.add(key)
                self.states.append((str(call), which, tree))
        return result

    def _force(self, inode: int) -> None:
        if inode in self._names:
            self._on_disk[inode] = dict(self._names[inode])
            self._changes.pop(inode, None)
        else:
            self._bytes[inode] = _contents(self._held[inode])

    def _may_be_there(self) -> Iterator[tuple[str, Names]]:
        yield "only names that were forced to it", self._on_disk
        yield "all names", self._names
        for inode, changes in self._changes.items():
            names = self._on_disk.get(inode, {})
            for change in changes if len(changes) > 1 else []:
                alone = self._on_disk | {inode: change.done_to(names)}
                yield (
                    f"but for one change ({', '.join([*change.gone, *change.new])}) only names that were forced to it",
                    alone,
                )

    def _look(self) -> Names:
        """Names and inodes in each folder as they are now. What is there is held open, so that no inode is given to a
        second file.
        """
        found: Names = {}
        for path, _, _ in os.walk(self._folder):
            with os.scandir(path) as entries:
                found[os.stat(path).st_ino] = {entry.name: self._hold(entry) for entry in entries}
        return found

    def _hold(self, entry: os.DirEntry[str]) -> int:
        if (inode := entry.inode()) not in self._held:
            self._held[inode] = os.open(entry.path, os.O_RDONLY)
        return inode

    def _tree(self, names: Names, inode: int, path: str) -> Iterator[tuple[str, bytes | None]]:
        for name, inner in sorted(names.get(inode, {}).items()):
            below = f"{path}{name}"
            if inner in self._names or inner in self._on_disk:
                yield below, None
                yield from self._tree(names, inner, below + "/")
            else:
                yield below, self._bytes.get(inner, b"")


def _contents(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def make_tree(tree: Tree, folder: Path) -> None:
    """Makes a folder with these contents in the place of the one that is there."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, contents in tree.items():
        if contents is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_bytes(contents)
