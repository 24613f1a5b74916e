"""Files that are there after a crash, or are not, but never half: written piece by piece, forced to the disk, put in
place by renaming.

All writing of checkpoints goes through here, call by call of the operating system.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from chatlearn.errors import CheckpointError

_PIECE = 4 << 20


@dataclass(frozen=True)
class Written:
    """A file that was forced to the disk.

    Attributes:
        nbytes: its length.
        digest: of its bytes: XXH3 with 64 bits, as 16 hexadecimal digits.
    """

    nbytes: int
    digest: str


def write_file(path: Path, parts: Iterable[bytes | memoryview], *, sync: bool = True) -> Written:
    """Writes a file and forces it to the disk.

    Args:
        path: is made or overwritten.
        parts: its bytes, one after another; each lies in one piece of memory.
        sync: ``False`` leaves the disk to a later :func:`sync_all`: several files together take little more than one.

    Raises:
        CheckpointError: the disk is full, or the file can't be written; both name it.
    """
    hasher, total = xxhash.xxh3_64(), 0
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            for piece in _pieces(parts):
                hasher.update(piece)
                total += len(piece)
                while len(piece):
                    piece = piece[os.write(file, piece) :]
            if sync:
                os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise unwritable(path, error) from error
    return Written(total, hasher.hexdigest())


def _pieces(parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of a size that disks like: small parts together, large ones cut."""
    small = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        if len(small) + len(view) <= _PIECE:
            small += view
            continue
        if small:
            yield memoryview(small)
            small = bytearray()
        yield from (view[start : start + _PIECE] for start in range(0, len(view), _PIECE))
    if small:
        yield memoryview(small)


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """What to say of a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free(path)
        return CheckpointError(
            f"{path} can't be written: the disk is full ({free}). Earlier checkpoints are as they were. Make room, or "
            f"keep fewer of them by runtime.max_data_ckpt_nums."
        )
    return CheckpointError(f"{path} can't be written: {error.strerror or error}. Earlier checkpoints are as they were.")


@contextmanager
def written(path: Path) -> Generator[None]:
    """Inside, a file is written in whatever way; an error of the system names it.

    Raises:
        CheckpointError: the disk is full, or the file can't be written.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free"
    except OSError:
        return "or the user's share of it"


def write_json(path: Path, value: Any, *, indent: int | None = 1, sync: bool = True) -> Written:
    """Writes JSON; other arguments and errors as of :func:`write_file`."""
    return write_file(path, [json.dumps(value, indent=indent).encode(), b"\n"], sync=sync)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """What to say of a file that can't be read."""
    return CheckpointError(f"{path} can't be read: {error}. Resume from an earlier checkpoint of the run.")


def sealed(path: Path, *, sync: bool = True) -> Written:
    """What is in a file that somebody else has written, which is forced to the disk (``sync``).

    Raises:
        CheckpointError: it can't be read.
    """
    hasher, total = xxhash.xxh3_64(), 0
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            if sync:
                _force(file)
            while piece := os.read(file, _PIECE):
                hasher.update(piece)
                total += len(piece)
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from error
    return Written(total, hasher.hexdigest())


def sync_all(*paths: Path) -> None:
    """Forces files, and the names in folders, to the disk.

    Raises:
        CheckpointError: one can't be.
    """
    for path in paths:
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                _force(file)
            finally:
                os.close(file)
        except OSError as error:
            raise unwritable(path, error) from error


def _force(file: int) -> None:
    """fsync; some file systems know none of folders, or of files that were opened for reading."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.ENOSYS):
            raise


def replace_text(path: Path, text: str) -> None:
    """Writes a small file aside and puts it in the place of the one that is there. What was renamed in its folder
    before is forced to the disk first.

    Raises:
        CheckpointError: it can't be written.
    """
    aside = path.with_name(f".{path.name}.partial")
    write_file(aside, [text.encode()], sync=False)
    sync_all(aside, path.parent)
    try:
        os.rename(aside, path)
    except OSError as error:
        raise unwritable(path, error) from error
    sync_all(path.parent)


def remove(folder: Path) -> None:
    """Removes a folder with all that it holds; one that is not there is no error."""
    shutil.rmtree(folder, ignore_errors=True)
