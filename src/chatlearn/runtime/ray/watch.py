"""Whether calls still end, and who waits for whom when they don't."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from chatlearn.errors import WorkerError
from chatlearn.runtime.base import Handle
from chatlearn.runtime.clients import refs_in
from chatlearn.runtime.ray import api
from chatlearn.runtime.ray.host import Identity
from chatlearn.runtime.ray.losses import on_node
from chatlearn.runtime.ray.tasks import Task
from chatlearn.runtime.stacks import Stack, running

PATIENCE = 1.0
"""Seconds for which only what is waited for is looked at."""

START_SECONDS = 60.0
"""Seconds that processes have to start in, whatever ``runtime.hang_timeout_seconds`` says: Python and its imports."""

_DUMP_SECONDS = 3.0


def wait_for_any(refs: list[Any], others: Callable[[], list[Any]], timeout: float | None) -> bool:
    """Waits until one of ``refs`` is there.

    Args:
        refs: that are waited for.
        others: gives those of all calls that have not ended; when one of them ends there is progress.
        timeout: seconds without any progress that are too long; ``None``: nothing is.

    Returns:
        Whether one is there; else nothing has ended for so long.
    """
    first = PATIENCE if timeout is None else min(PATIENCE, timeout)
    if api.wait(refs, timeout=first)[0]:
        return True
    if timeout is None or is_debugged():
        api.wait(refs)
        return True
    waited_for = set(refs)
    pending = list(dict.fromkeys([*refs, *others()]))
    ended, pending = api.wait(pending, len(pending), 0)
    last = time.monotonic() - first
    while not waited_for.intersection(ended):
        left = max(last + timeout - time.monotonic(), 0.0)
        ended, pending = api.wait(pending, timeout=left)
        if not ended:
            return False
        last = time.monotonic()
    return True


def hang_limit(tasks: Iterable[Task], timeout: float | None) -> float | None:
    """Seconds without progress that are too long while these calls have not ended."""
    if timeout is None or all(task.method != "construct" for task in tasks):
        return timeout
    return max(timeout, START_SECONDS)


def is_debugged() -> bool:
    """Whether somebody steps through this process."""
    return sys.gettrace() is not None


class Hang:
    """Calls of which none has ended for too long.

    Args:
        tasks: all calls that have not ended, in the order of submission.
        identities: the processes of all replicas.
        seconds: since a call has ended.

    Attributes:
        report: what to say.
    """

    def __init__(self, tasks: Collection[Task], identities: Mapping[Handle, Identity], seconds: float) -> None:
        self.report = hang_report(tasks, identities, seconds)
        self._refs = {task.ending for task in tasks}

    def keeps(self, refs: Iterable[Any]) -> bool:
        """Whether all that somebody waits for is among them, and still none has ended."""
        return self._refs.issuperset(refs) and not api.ready(list(self._refs))


def hang_report(tasks: Collection[Task], identities: Mapping[Handle, Identity], seconds: float) -> str:
    """What to say when nothing has ended for so long: for each replica what it is at or waits for, and then the Python
    stacks of those that are executing something.

    Args:
        tasks: all calls that have not ended, in the order of submission.
        identities: the processes of all replicas.
        seconds: since a call has ended.
    """
    first: dict[Handle, Task] = {}
    for task in sorted(tasks, key=lambda task: task.number):
        first.setdefault(task.handle, task)
    found = _stacks(identities)
    lines = [f"No call of any module has ended for {seconds:g} s (runtime.hang_timeout_seconds), so the run hangs:"]
    for task in first.values():
        missing = [each for each in task.inputs if not each.done]
        if not missing:
            asks = _asks(task) if found.get(task.handle, Stack()).asks else ""
            lines.append(f"  {task}, running for {_seconds(task, seconds):.0f} s{asks}")
            continue
        lines.append(f"  {task.handle} waits for {_queued(missing[0], first, seconds)}")
    for handle, stack in found.items():
        if stack.text or stack.problem:
            lines += ["", f"{handle} executes:" if stack.text else f"{handle}:", str(stack)]
    if idle := sorted(str(handle) for handle, stack in found.items() if not stack.text and not stack.problem):
        lines += ["", f"Idle: {', '.join(idle)}"]
    return "\n".join(lines)


def _queued(task: Task, first: Mapping[Handle, Task], seconds: float) -> str:
    """A call that somebody waits for, and what keeps it."""
    ahead = first.get(task.handle, task)
    if ahead is not task:
        return f"{task}, which stands behind {_queued(ahead, first, seconds)}"
    if any(not each.done for each in task.inputs):
        return f"{task}, which has not begun"
    return f"{task}, running for {_seconds(task, seconds):.0f} s"


def _seconds(task: Task, quiet: float) -> float:
    """Since a call could begin; nothing has ended for the last ``quiet`` seconds, whenever the driver has seen it."""
    now = time.monotonic()
    ends = [each.ended for each in (task.before, *task.inputs) if each is not None and each.done]
    return now - max([task.submitted, *(min(end, now - quiet) for end in ends)])


def _asks(task: Task) -> str:
    """The modules that the step of a call was given to ask."""
    if task.method != "run":
        return ""
    call = task.args[0]
    asked = [f"{ref.name}[{call.index % ref.num_replica}]" for ref in refs_in(call.constants)]
    return f", waits for what it asks {' or '.join(asked)}" if asked else ""


def stacks(identities: Mapping[Handle, Identity]) -> dict[str, str]:
    """What each worker is executing: the frames of the user's code, the innermost last, or ``idle``. Workers that hold
    the interpreter's lock for ever answer too.
    """
    return {str(handle): str(stack) for handle, stack in _stacks(identities).items()}


def _stacks(identities: Mapping[Handle, Identity]) -> dict[Handle, Stack]:
    found: dict[Handle, Stack] = {}
    for node in dict.fromkeys(identity.node for identity in identities.values()):
        there = {handle: identity for handle, identity in identities.items() if identity.node == node}
        entries = [(identity.pid, identity.last_words) for identity in there.values()]
        try:
            answers: list[Stack] = on_node(node, dumped, entries)
        except WorkerError as error:
            answers = [Stack(problem=str(error))] * len(entries)
        found |= dict(zip(there, answers, strict=True))
    return found


def dumped(entries: list[tuple[int, str]]) -> list[Stack]:
    """Has processes of this machine write their stacks, and reads them.

    Args:
        entries: number of a process, and the file that it writes to.
    """
    sizes: list[int] = []
    for pid, path in entries:
        sizes.append(os.path.getsize(path) if os.path.exists(path) else 0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    end = time.monotonic() + _DUMP_SECONDS
    return [_answer(pid, path, size, end) for (pid, path), size in zip(entries, sizes, strict=True)]


def _answer(pid: int, path: str, size: int, end: float) -> Stack:
    text = ""
    while True:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            file.seek(size)
            now = file.read()
            if now and now == text:
                return running(now)
            text = now
        state = _state(pid)
        if time.monotonic() > end or (not text and state in _SILENT):
            return running(text) if text else Stack(problem=_why_silent(pid, state))
        time.sleep(0.05)


_GONE, _STOPPED, _IN_SYSTEM = "", "T", "D"
_SILENT = {_GONE, _STOPPED}
"""States in which a process never answers a signal."""


def _state(pid: int) -> str:
    """Of a process, in the letters of ``/proc``; ``?`` where there is no such folder."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0].upper()
    except OSError:
        return _GONE if os.path.exists("/proc/self") else "?"


def _why_silent(pid: int, state: str) -> str:
    """What keeps a process from answering a signal."""
    if state == _GONE:
        return f"  process {pid} is gone"
    if state == _STOPPED:
        return f"  process {pid} is stopped (by SIGSTOP, or by a debugger)"
    if state == _IN_SYSTEM:
        return f"  process {pid} waits for a device or for a file system, and answers no signal"
    return f"  process {pid} does not answer"
