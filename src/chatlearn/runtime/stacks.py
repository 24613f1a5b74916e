"""Python stacks as text, cut down to what a user's code was doing."""

from __future__ import annotations

import linecache
import os
import re
import sys
from dataclasses import dataclass

from chatlearn.flow import signature
from chatlearn.runtime import clients

_FRAME = re.compile(r'^ *File "(?P<path>.+)", line (?P<line>\d+),? in (?P<function>.+)$', re.MULTILINE)
_INNERMOST_FIRST = "most recent call first"
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_WORKER = _FOLDER + "worker.py"


@dataclass(frozen=True)
class Stack:
    """What a worker is executing.

    Attributes:
        text: the frames of the user's code as Python prints them, the innermost last; empty where nothing runs.
        asks: it waits for a module that its step has asked.
        problem: why nothing is known; empty if something is.
    """

    text: str = ""
    asks: bool = False
    problem: str = ""

    def __str__(self) -> str:
        return self.problem or self.text or "idle"


def running(dump: str) -> Stack:
    """The calls that run in a process.

    Args:
        dump: of all its threads, by :mod:`faulthandler`.
    """
    threads = [thread for thread in dump.strip().split("\n\n") if _WORKER in thread]
    texts = [text for thread in threads if (text := users_frames(thread))]
    return Stack("\n".join(texts), any(clients.__file__ in thread for thread in threads))


def users_frames(text: str) -> str:
    """The frames of one thread below the worker that called them, the innermost last, each with its source line where
    that can be read; without those of Ray and of what lies between workers.

    Args:
        text: by :mod:`faulthandler` or :mod:`traceback`.
    """
    frames = [match.groups() for match in _FRAME.finditer(text)]
    if _INNERMOST_FIRST in text:
        frames.reverse()
    begin = next((number for number, (path, _, _) in enumerate(frames) if path == _WORKER), 0)
    between = _between()
    lines: list[str] = []
    for path, number, function in frames[begin:]:
        if path.startswith(between):
            continue
        lines.append(f'  File "{path}", line {number}, in {function}')
        if source := linecache.getline(path, int(number)).strip():
            lines.append(f"    {source}")
    return "\n".join(lines)


def _between() -> tuple[str, ...]:
    """Beginnings of the paths whose frames stand between a worker and a user's function."""
    ray = getattr(sys.modules.get("ray"), "__file__", None)
    ours = _FOLDER, signature.__file__
    return ours if ray is None else (*ours, os.path.join(os.path.dirname(ray), ""))
