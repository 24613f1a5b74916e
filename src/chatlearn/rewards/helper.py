"""A child process that does what may run for ever, take all memory or crash: it answers questions, and is replaceable.

Questions and answers are lines of JSON over two pipes. The child is started with the first question, and anew with the
next one after it has ended or has taken too long. It gets no file and nothing of the environment of its owner, works
in ``/`` and has a session of its own. It ends with its owner, however that ends: its questions' pipe is closed then.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

from chatlearn.errors import DataError

_START_SECONDS = 120.0
_WALL_FACTOR, _WALL_SECONDS = 10.0, 30.0
_MEMORY_BYTES = 4 << 30
_MAX_ENDLESS = 10_000
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
"""Without these an interpreter may not start."""


def wall_seconds(cpu_seconds: float) -> float:
    """How long to wait for work that is limited to so many CPU seconds: long, since load is no fault of an answer."""
    return _WALL_FACTOR * cpu_seconds + _WALL_SECONDS


class HelperEndedError(Exception):
    """The child has ended before it answered.

    Attributes:
        was_killed: by something that is no question's fault.
    """

    def __init__(self, was_killed: bool) -> None:
        super().__init__(was_killed)
        self.was_killed = was_killed


class Endless(set[str]):
    """Questions that have run into the limit of time: a policy repeats itself, and each time would cost the limit."""

    def add(self, text: str) -> None:
        """Adds one; the others are forgotten where there is no room left."""
        if len(self) >= _MAX_ENDLESS:
            self.clear()
        super().add(text)


class Helper:
    """The child, as its owner sees it. For several threads; a forked copy of the owner gets a child of its own.

    Args:
        module: where the function ``serve`` is that the child runs; it makes a :class:`Channel` first.
        arguments: of that function, as JSON can say them.
        patience_seconds: how long to wait for one answer.
        library: what has to be importable in the child, for the error.

    Attributes:
        lock: held while a question is asked; its owner may hold it longer. A forked copy gets a new one.
    """

    def __init__(self, module: str, *arguments: Any, patience_seconds: float, library: str) -> None:
        self._code = f"import json, sys; from {module} import serve; serve(*json.loads(sys.argv[1]))"
        self._arguments = json.dumps(arguments)
        self._patience_seconds = patience_seconds
        self._library = library
        self.lock = threading.RLock()
        self._child: _Child | None = None
        _HELPERS.add(self)

    def ask(self, question: Any) -> Any:
        """The child's answer to a question; both are what JSON can say.

        Raises:
            HelperEndedError: the child is gone before it has an answer. The next question gets a new one.
            DataError: the child doesn't start.
        """
        line = json.dumps(question, default=_plain).encode() + b"\n"
        with self.lock:
            child = self._child or self._start()
            try:
                return json.loads(child.ask(line, self._patience_seconds))
            except BaseException:  # it may still answer, to the next question
                self._child = None
                self._end()
                raise

    def _start(self) -> _Child:
        child = _Child([sys.executable, "-P", "-s", "-c", self._code, self._arguments])
        self._end = weakref.finalize(self, child.end)  # runs at exit too
        if child.line(_START_SECONDS) != b"ready\n":
            self._end()
            raise DataError(
                f"the helper process that runs {self._library} does not start. See what this says: "
                f'{sys.executable} -c "import {self._library.replace("-", "_")}"'
            )
        self._child = child
        return child

    def forget(self) -> None:
        """For a forked copy: the child is the original's, and so may be the lock."""
        self.lock = threading.RLock()
        if self._child is not None:
            self._end.detach()
            self._child.abandon()
            self._child = None


_HELPERS: weakref.WeakSet[Helper] = weakref.WeakSet()


def _forget_all() -> None:
    for helper in _HELPERS:
        helper.forget()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_all)


class _Child:
    """One start of the process."""

    def __init__(self, command: list[str]) -> None:
        # Unbuffered: a forked copy can close such files whatever the original's threads were doing.
        self.process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.abspath(os.sep),
            env=_environment(),
            start_new_session=True,
        )
        self._owner = os.getpid()
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self._lines), daemon=True).start()

    def ask(self, line: bytes, seconds: float) -> bytes:
        assert self.process.stdin is not None
        left = memoryview(line)
        try:
            while left:
                left = left[self.process.stdin.write(left) :]
        except OSError:  # it was gone before
            self.end()
            raise HelperEndedError(was_killed=True) from None
        answer = self.line(seconds)
        if not answer:
            was_killed = self._has_closed() and self.process.wait() in (-9, -15)
            self.end()
            raise HelperEndedError(was_killed)
        return answer

    def line(self, seconds: float) -> bytes:
        """The next line; empty at the end, and after that many seconds without one."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return b""
        if not line:
            self._lines.put(b"")  # the end stays
        return line

    def _has_closed(self) -> bool:
        return not self._lines.empty()

    def end(self) -> None:
        """Ends the process, whatever it does; again is harmless, and so is a forked copy's call."""
        if self._owner == os.getpid():
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Lets go of another process's child."""
        self.process.returncode = 0  # not to be waited for
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def _read(answers: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in answers:
        lines.put(line)
    lines.put(b"")


def _environment() -> dict[str, str]:
    """Where the owner finds its modules, and what makes two children alike; nothing of the owner's secrets."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    # Equal hashes give equal orders of terms. Threads of linear algebra would be in the way of forks.
    fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**kept, **fixed, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}


def _plain(value: Any) -> Any:
    """What stands for a value that JSON can't say: an item of a data set may hold expressions, say."""
    if isinstance(value, Mapping):
        return {**cast(Mapping[Any, Any], value)}
    if isinstance(value, set | frozenset):
        return sorted(cast(set[Any], value), key=str)
    return value.tolist() if hasattr(value, "tolist") else str(value)


# -- In the child ------------------------------------------------------------------------------------------------------


class Channel:
    """The child's two pipes. From now on what libraries print goes nowhere.

    Attributes:
        questions: the file that questions come from; it ends when the owner ends.
    """

    def __init__(self) -> None:
        self.questions = os.fdopen(os.dup(0), "rb")
        self._answers = os.fdopen(os.dup(1), "wb", buffering=0)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)

    def serve(self, answer: Callable[[Any], Any]) -> None:
        """Says that the child is ready, and answers questions until the owner is gone."""
        self._answers.write(b"ready\n")
        for line in self.questions:
            self._answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


def set_alarm(cpu_seconds: float) -> None:
    """Has the system end this process after so much work, whatever it is doing then; 0 takes that back."""
    if hasattr(signal, "setitimer"):  # not on Windows, where the owner's patience is the limit
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def limit(name: str, soft: int, hard: int | None = None) -> None:
    """Sets a limit of this process, ``"RLIMIT_AS"`` say, where the system has it and allows that.

    Args:
        name: as in the module ``resource``.
        soft: the limit; a lower one that is there stays.
        hard: how far it can be raised again; left out, not at all.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS refuses some
        kind: int = getattr(resource, name)
        old = resource.getrlimit(kind)[1]
        wanted = soft if hard is None else hard
        top = wanted if old == resource.RLIM_INFINITY else min(wanted, old)
        resource.setrlimit(kind, (min(soft, top), top))


def limit_memory() -> None:
    """Limits this process to 4 GiB of addresses."""
    limit("RLIMIT_AS", _MEMORY_BYTES)
