"""The output of workers: Ray writes one file for each process; a run's folder shows them by replica."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from chatlearn.errors import WorkerError
from chatlearn.runtime.base import Handle
from chatlearn.runtime.ray.host import Identity
from chatlearn.runtime.ray.losses import on_node

_MARKS = (b":job_id:", b":actor_name:", b":task_name:")


def keep_logs(folder: Path | None, identities: Mapping[Handle, Identity], as_copies: bool = False) -> None:
    """Puts ``policy-0.log``, … into a folder.

    Args:
        folder: of the run; ``None`` keeps nothing.
        identities: the workers.
        as_copies: real files, at the end of a run; else links to the files that workers write, where these are on this
            machine.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError, WorkerError):  # a log is no reason to end a run
        for handle, identity in identities.items():
            if as_copies and identity.log and not os.path.exists(identity.log):
                _path(folder, handle).write_bytes(on_node(identity.node, _content, identity.log))
            elif not as_copies and os.path.exists(identity.log):
                _link(_path(folder, handle), identity.log)
        for link in [path for path in folder.glob("*.log") if as_copies and path.is_symlink() and path.exists()]:
            content = _content(str(link))
            link.unlink()
            link.write_bytes(content)


def _path(folder: Path, handle: Handle) -> Path:
    return folder / f"{handle.module}-{handle.replica}.log"


def _link(path: Path, target: str) -> None:
    """Makes a link; what is there already, of a process before, gets a number."""
    if os.path.lexists(path):
        if path.is_symlink() and os.readlink(path) == target:
            return
        numbered = (path.with_suffix(f".{n}.log") for n in itertools.count(1))
        path.rename(next(each for each in numbered if not os.path.lexists(each)))
    path.symlink_to(target)


def _content(path: str) -> bytes:
    """What a worker has written, without the lines that Ray marks its log with."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(_MARKS))
