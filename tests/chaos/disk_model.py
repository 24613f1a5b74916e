"""What is left of a folder when the power fails: only what was forced to the disk is there for certain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disk_calls import Call

Tree = dict[str, bytes | None]
"""Path -> contents of a file, or ``None`` for a folder."""


@dataclass
class _Folders:
    """Names in each folder, by inodes."""

    names: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])


class Disk:
    """Follows a folder call by call, and keeps apart what is in memory from what is on the disk.

    A file's bytes are on the disk as they were at its last fsync; before the first one it is empty. The names in a
    folder are on the disk as they were at the folder's last fsync. All that is there at the beginning is on the disk.

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
        self._root = os.stat(folder).st_ino
        self._seen: set[int] = set()
        self.states: list[tuple[str, str, Tree]] = []

    def handle(self, call: Call) -> Any:
        """Does the call and adds what the power may leave behind it."""
        result = call.do()
        if not call.changes:
            return result
        self._names = self._look()
        if call.function in ("fsync", "fdatasync"):
            inode = os.stat(self._folder / call.path).st_ino
            if inode in self._names:
                self._on_disk[inode] = dict(self._names[inode])
            else:
                self._bytes[inode] = _contents(self._held[inode])
        for which, names in (("only names that were forced to it", self._on_disk), ("all names", self._names)):
            tree = dict(self._tree(names, self._root, ""))
            if (key := hash(tuple(sorted(tree.items())))) not in self._seen:
                self._seen.add(key)
                self.states.append((str(call), which, tree))
        return result

    def _look(self) -> dict[int, dict[str, int]]:
        """Names and inodes in each folder as they are now. What is there is held open, so that no inode is given to a
        second file.
        """
        found: dict[int, dict[str, int]] = {}
        for path, _, _ in os.walk(self._folder):
            with os.scandir(path) as entries:
                found[os.stat(path).st_ino] = {entry.name: self._hold(entry) for entry in entries}
        return found

    def _hold(self, entry: os.DirEntry[str]) -> int:
        if (inode := entry.inode()) not in self._held:
            self._held[inode] = os.open(entry.path, os.O_RDONLY)
        return inode

    def _tree(self, names: dict[int, dict[str, int]], inode: int, path: str) -> Iterator[tuple[str, bytes | None]]:
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
