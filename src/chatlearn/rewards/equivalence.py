"""Whether two answers mean the same, decided by math-verify in a process of its own.

Computer algebra on what a model has written can run for hours or take all memory (``9^{9^{9^{9}}}``), and inside of
machine code neither a signal handler nor a thread stops it. So the work is done by a helper process that ends itself
at its limit of CPU seconds, and is then started anew. CPU seconds, since then the load of the machine changes no
reward. The helper starts with the first question that needs it and ends with its owner. An answer that has ended it
is not asked about again, since a policy repeats itself: each time would cost the limit and a new start.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

from chatlearn.errors import ConfigError, DataError

MAX_ANSWER_CHARACTERS = 1_000
"""Longer answers are nobody's final answer, and are equal to nothing."""

_START_SECONDS = 120.0
_WALL_FACTOR, _WALL_SECONDS = 10.0, 30.0
"""The owner waits this many times the limit, and these seconds, before it ends a helper that does not answer."""
_MEMORY_BYTES = 4 << 30
_MAX_KNOWN = 200_000
_MAX_ENDLESS = 10_000


class Verifier:
    """Answers held against gold answers by math-verify. Each pair is decided once; the decision stays.

    It can be copied and pickled (without its process) and used from several threads.

    Args:
        timeout_seconds: CPU seconds for one comparison; above 0.

    Raises:
        ConfigError: math-verify isn't installed, or the limit isn't above 0.
    """

    def __init__(self, timeout_seconds: float = 2.0) -> None:
        if not timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above 0, got {timeout_seconds!r}.")
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "comparing answers by their meaning takes math-verify, which is not installed. Install it: pip install "
                "'chatlearn[math]'; or set `verify: false`, which compares texts and numbers only."
            )
        self.timeout_seconds = timeout_seconds
        self._known: dict[tuple[str, ...], bool] = {}
        self._endless: set[str] = set()
        self._lock = threading.Lock()
        self._helper: _Helper | None = None

    def is_expression(self, gold: str) -> bool:
        """Whether math-verify can read the answer; one that takes too long counts as unreadable."""
        return len(gold) <= MAX_ANSWER_CHARACTERS and self._ask(gold)

    def equal(self, gold: str, answer: str) -> bool:
        """Whether the answer means the same as the gold answer.

        A comparison at its limit says no, and from then on the answer is equal to no gold answer.
        """
        return len(answer) <= MAX_ANSWER_CHARACTERS and self._ask(gold, answer)

    def _ask(self, gold: str, *answer: str) -> bool:
        texts = (gold, *answer)
        with self._lock:
            if texts not in self._known:
                if answer and answer[0] in self._endless:
                    return False
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                if self._helper is None:
                    self._helper = _Helper(self.timeout_seconds)
                    weakref.finalize(self, self._helper.end)  # runs at exit too
                verdict = self._helper.ask(texts)
                if verdict is None:  # it has ended; the next question gets a new one
                    if not self._helper.was_killed:
                        self._remember_endless(texts[-1])
                    self._helper = None
                self._known[texts] = bool(verdict)
            return self._known[texts]

    def _remember_endless(self, text: str) -> None:
        if len(self._endless) >= _MAX_ENDLESS:
            self._endless.clear()
        self._endless.add(text)

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_seconds": self.timeout_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class _Helper:
    """The process, as its owner sees it.

    Attributes:
        was_killed: it has ended by what is no question's fault.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._wall_seconds = _WALL_FACTOR * timeout_seconds + _WALL_SECONDS
        # -P keeps the folder of this file off the path: it holds a math.py. Equal hashes give equal orders of terms.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(timeout_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.was_killed = False
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._has_closed = False
        threading.Thread(target=self._read, daemon=True).start()
        if self._line(_START_SECONDS) != b"ready\n":
            self.end()
            raise DataError(
                "the helper process that runs math-verify does not start. See what this says: "
                f'{sys.executable} -c "import math_verify"'
            )

    def ask(self, texts: tuple[str, ...]) -> bool | None:
        """The verdict on a gold answer, or on a pair; ``None`` if the process is gone before it has one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(texts).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            line, self.was_killed = b"", True  # it was gone before
        else:
            line = self._line(self._wall_seconds)
        if not line:
            if self._has_closed:
                self.was_killed |= self._process.wait() in (-9, -15)
            self.end()
            return None
        return json.loads(line)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._has_closed = True
        self._lines.put(b"")

    def _line(self, seconds: float) -> bytes:
        """The next line; empty at the end, and after that many seconds without one."""
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return b""

    def end(self) -> None:
        """Ends the process, whatever it does; again is harmless."""
        self._process.kill()
        self._process.wait()


def _serve(timeout_seconds: float) -> None:
    """The helper: a line with a gold answer, or a gold answer and an answer, gets a line with ``true`` or ``false``."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    _limit_memory()
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

    def expressions(text: str, units: bool) -> list[Any]:
        reading = LatexNormalizationConfig(units=units, malformed_operators=True, nits=True)
        config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=reading)]
        boxed = f"\\boxed{{{text}}}"
        # the library leaves the type of expressions open
        return parse(  # pyright: ignore[reportUnknownVariableType]
            boxed, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=0
        )

    def verdict(gold: str, answer: str | None) -> bool:
        # The library takes a last letter for a unit ("1 + c" becomes "1 +"), so texts are read without units first.
        for units in (False, True):
            known = expressions(gold, units)
            if known and (answer is None or verify(known, expressions(answer, units), timeout_seconds=None)):
                return True
        return False

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        gold, *answer = json.loads(line)
        _set_alarm(timeout_seconds)
        result = verdict(gold, *answer or [None])
        _set_alarm(0)
        print(json.dumps(result), file=answers, flush=True)


def _set_alarm(cpu_seconds: float) -> None:
    """Has the system end this process after so much work, whatever it is doing then; 0 takes that back."""
    if hasattr(signal, "setitimer"):  # not on Windows, where the owner's patience is the limit
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
