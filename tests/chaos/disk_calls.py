"""Calls of the operating system that change what is under a folder, each passed to a function that may prevent it.

Patched are functions of :mod:`os`, which all of ``chatlearn.checkpoint`` and :func:`shutil.rmtree` go through. Whoever
changes the folder by other ways than these is noticed by an audit hook.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FUNCTIONS = (
    *("open", "write", "fsync", "fdatasync", "close"),
    *("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "ftruncate", "truncate", "link", "symlink"),
)
"""Patched functions of ``os``, where there are such."""

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
"""What the audit hook looks at; ``os.replace`` is an ``os.rename`` there, ``os.unlink`` an ``os.remove``."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        function: of ``os``.
        path: relative to the folder.
        do: does it; of a write, a number of bytes does only so many.
        to: second path of a rename, or empty.
        nbytes: that are to be written.
        creates: an ``open`` that may make the file or cut it off.
    """

    function: str
    path: str
    do: Callable[..., Any] = field(repr=False, compare=False)
    to: str = ""
    nbytes: int = 0
    creates: bool = False

    @property
    def changes(self) -> bool:
        """Whether something on the disk may be different afterwards."""
        return self.creates or self.function not in ("open", "close")

    def __str__(self) -> str:
        return f"{self.function} {self.path}" + (f" -> {self.to}" if self.to else "")


Handler = Callable[[Call], Any]


class DiskCalls:
    """Passes all calls that concern a folder to ``handle``, which returns what ``call.do()`` gives. They stay patched
    until the process ends.

    Args:
        folder: need not be there yet.
        handle: gets each call.

    Attributes:
        past: changes of the folder that no patched function has made, other than by modules' own code under
            ``<module>.files``.
    """

    def __init__(self, folder: Path, handle: Handler) -> None:
        self._folder = os.path.abspath(folder)
        self._handle = handle
        self._files: dict[int, tuple[str, tuple[int, int]]] = {}
        self._inside = threading.local()
        self.past: list[str] = []
        for name in FUNCTIONS:
            if hasattr(os, name):
                setattr(os, name, self._patched(name, getattr(os, name)))
        sys.addaudithook(self._audit)

    def _patched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(path: Any, *args: Any, **options: Any) -> Any:
            if getattr(self._inside, "now", False):
                return real(path, *args, **options)
            own = (
                self._path_of_file(path) if isinstance(path, int) else self._path(path, options, "dir_fd", "src_dir_fd")
            )
            if own is None:
                return real(path, *args, **options)
            return self._pass(name, real, own, path, args, options)

        return function

    def _pass(self, name: str, real: Callable[..., Any], own: str, path: Any, args: Any, options: Any) -> Any:
        def do(part: int | None = None) -> Any:
            result = real(path, *(args if part is None else (args[0][:part],)), **options)
            if name == "open":
                status = os.fstat(result)
                self._files[result] = own, (status.st_dev, status.st_ino)
            elif name == "close":
                self._files.pop(path, None)
            return result

        to = (
            (self._path(args[0], options, "dst_dir_fd") or str(args[0]))
            if name in ("rename", "replace", "link")
            else ""
        )
        nbytes = memoryview(args[0]).nbytes if name == "write" else 0
        creates = name == "open" and bool(args[0] & _WRITES)
        self._inside.now = True  # what the handler itself does is none of it
        try:
            return self._handle(Call(name, own, do, to, nbytes, creates))
        finally:
            self._inside.now = False

    def _path(self, path: Any, options: dict[str, Any], *folders: str) -> str | None:
        """A path under the folder; ``None`` for others."""
        text = os.fsdecode(path)
        file = next((options[name] for name in folders if options.get(name) is not None), None)
        if file is not None:
            beginning = self._path_of_file(file)
            if beginning is None:
                return None
            text = os.path.join(self._folder, beginning, text)
        found = os.path.relpath(os.path.abspath(text), self._folder)
        return None if found.startswith("..") else found

    def _path_of_file(self, file: int) -> str | None:
        """The path that a file was opened by; ``None`` if it is none of ours."""
        path, identity = self._files.get(file, (None, None))
        if path is None:
            return None
        try:
            status = os.fstat(file)
        except OSError:
            return None
        return path if (status.st_dev, status.st_ino) == identity else None

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or getattr(self._inside, "now", False) or not args or isinstance(args[0], int):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
            return
        found = os.path.relpath(os.path.abspath(os.fsdecode(args[0])), self._folder)
        unnamed = event == "open" and os.path.isdir(args[0])  # a file without a name, which a folder is opened for
        if not (found.startswith("..") or unnamed or _is_of_a_module(found)):
            self.past.append(f"{event} {found}")


def _is_of_a_module(path: str) -> bool:
    """Whether a file or folder is a module's own: ``.episode-000002.partial/judge.files/counts.json``."""
    parts = Path(path).parts
    return len(parts) > 2 and parts[1].endswith(".files")
