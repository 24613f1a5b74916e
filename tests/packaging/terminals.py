"""Programs on a terminal (a pseudo-terminal), and what a person would see and type there."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

TIMEOUT_SECONDS = 300
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Terminal:
    """One program on a terminal of its own.

    Args:
        folder: where it runs.
        words: after ``python``.

    Attributes:
        raw: all that it has shown, with the codes that move the cursor.
    """

    def __init__(self, folder: Path, *words: str) -> None:
        ours, theirs = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONBREAKPOINT"}
        environment |= {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "300", "LINES": "50"}
        self.raw = ""
        self._read_until = 0
        self._ours = ours
        self._process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._ours)

    def answer(self, line: str | None = None) -> str:
        """Types a line, if one is given; returns what is shown from then on up to the next ``(Pdb)`` prompt."""
        if line is not None:
            os.write(self._ours, f"{line}\n".encode())
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self._new.endswith("(Pdb) "):
            assert self._read(deadline), f"no prompt came, but:\n{self.raw}"
        shown, self._read_until = self._new, len(self.raw)
        return shown

    def finish(self, line: str) -> tuple[str, int]:
        """Types a line and waits for the end; what is shown from then on, and the exit code."""
        os.write(self._ours, f"{line}\n".encode())
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._read(deadline):
            pass
        return self._new, self._process.wait(TIMEOUT_SECONDS)

    @property
    def _new(self) -> str:
        return _ESCAPES.sub("", self.raw[self._read_until :]).replace("\r\n", "\n")

    def _read(self, deadline: float) -> bool:
        """Reads on; says whether there was something."""
        ready, _, _ = select.select([self._ours], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"nothing came in time after:\n{self.raw}"
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux: the program has closed its side
            return False
        self.raw += data.decode("utf-8", errors="replace")
        return bool(data)
