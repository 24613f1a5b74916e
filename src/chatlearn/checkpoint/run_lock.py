"""One program at a time writes a run folder: a lock that lives as long as the process that took it.

The kernel releases it when the process ends, however it ends. Who only reads a folder needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from chatlearn.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

NAME = "run.lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_mutex = threading.Lock()


@dataclass
class _Held:
    """A lock of this process.

    Attributes:
        file: descriptor of the locked file; ``None`` where there are no locks.
        num_claims: shares that are not released yet.
    """

    file: int | None
    num_claims: int = 0


_held: dict[Path, _Held] = {}


class Claim:
    """A share in this process's lock of a run folder.

    Attributes:
        note: one line for the user where the folder can't be locked, or empty.
    """

    def __init__(self, path: Path, held: _Held) -> None:
        self._path, self._held, self._is_released = path, held, False
        self.note = ""
        if held.file is None:
            self.note = f"note: {path.parent} can't be locked here; see that no second program writes to it."

    def release(self) -> None:
        """Gives the share back; with the last one of this process the folder is free. Later calls do nothing."""
        with _mutex:
            if self._is_released:
                return
            self._is_released = True
            self._held.num_claims -= 1
            if self._held.num_claims == 0 and _held.get(self._path) is self._held:
                del _held[self._path]
                _free(self._path, self._held.file)


def claim(folder: Path) -> Claim:
    """Locks a run folder for this process, which may do so more than once.

    Args:
        folder: is there, and can be written.

    Raises:
        CheckpointError: another process has locked it; the process is named.
    """
    path = Path(os.path.realpath(folder)) / NAME
    with _mutex:
        held = _held.get(path)
        if held is None or not _is_current(path, held.file):
            if held is not None and held.file is not None:
                os.close(held.file)  # of a folder that was deleted
            held = _held[path] = _Held(_locked(path, folder))
        held.num_claims += 1
        return Claim(path, held)


def check_free(folder: Path) -> None:
    """Sees that no other process has locked a folder; one that can't be written counts as free.

    Raises:
        CheckpointError: another process has locked it.
    """
    if (Path(os.path.realpath(folder)) / NAME).exists():
        with contextlib.suppress(OSError):
            claim(folder).release()


def _locked(path: Path, folder: Path) -> int | None:
    """The descriptor of the file, locked and with this process written into it; ``None`` where there are no locks."""
    if fcntl is None:
        return None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = os.pread(file, 4096, 0)
            os.close(file)
            if error.errno in _NO_LOCKS:
                return None
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise
            raise CheckpointError(
                f"{folder} is in use by {_who(text)}: wait for it, stop it, or choose another runtime.exp_name."
            ) from None
        if _is_current(path, file):
            break
        os.close(file)  # the one that had it has just ended and taken the file away
    own = {"process": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(timespec="seconds")}
    os.ftruncate(file, 0)
    os.pwrite(file, (json.dumps(own) + "\n").encode(), 0)
    return file


def _is_current(path: Path, file: int | None) -> bool:
    """Whether the descriptor is that of the file at the path."""
    if file is None:
        return True
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _who(text: bytes) -> str:
    """The process that a lock's file names."""
    try:
        own: dict[str, Any] = json.loads(text)
        return f"process {own['process']} on host {own['host']} since {own['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _free(path: Path, file: int | None) -> None:
    if file is None:
        return
    if _is_current(path, file):
        path.unlink(missing_ok=True)  # while it is still locked: who waits for it sees that it has gone
    os.close(file)


def _forget() -> None:
    """A forked process is not the one that has the locks; its copies would keep them after the other's end."""
    global _mutex
    _mutex = threading.Lock()
    for held in _held.values():
        if held.file is not None:
            os.close(held.file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
