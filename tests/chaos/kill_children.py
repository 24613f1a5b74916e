"""Starts of the small PPO program: in a forked process that has its imports already, or in a process of its own."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import kill_program
from kill_program import Settings, places_in

PATIENCE_SECONDS = 300.0
"""A program that takes longer hangs."""


@dataclass
class Ended:
    """A program that is no more.

    Attributes:
        code: its exit code; below 0 the signal that it died of.
        output: what it has printed.
        place: what it was doing at the end.
        seconds: from its first own line to its end.
    """

    code: int
    output: str
    place: str
    seconds: float


class Child:
    """The program in a process.

    Args:
        settings: of the program.
        forked: the process is a fork of this one, which must have no threads.
        function: to call in a forked process in the place of :func:`kill_program.run`.
        output: name of the file for what it prints.
    """

    def __init__(
        self,
        settings: Settings,
        forked: bool = True,
        function: Callable[[Settings], None] = kill_program.run,
        output: str = "output.txt",
    ) -> None:
        self.settings = settings
        Path(settings.folder).mkdir(parents=True, exist_ok=True)
        self._output = Path(settings.folder, output)
        self._output.unlink(missing_ok=True)
        self._num_before = len(places_in(settings.places))
        self._code: int | None = None
        if forked:
            self._program = None
            self.pid = os.fork()
            if self.pid == 0:
                _be(settings, self._output, function)
        else:
            command = [sys.executable, kill_program.__file__, settings.to_json()]
            with self._output.open("w") as file:
                self._program = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            self.pid = self._program.pid

    @property
    def places(self) -> list[tuple[float, str]]:
        """What it has told of itself so far."""
        return places_in(self.settings.places)[self._num_before :]

    @property
    def has_ended(self) -> bool:
        """Whether it is no more."""
        if self._code is None:
            if self._program is not None:
                self._code = self._program.poll()
            else:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Waits for something; returns ``False`` if the program has ended before.

        Raises:
            TimeoutError: neither has come.
        """
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self.has_ended:
                return False
            if time.monotonic() > give_up:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"the program hangs; it said:\n{self._output.read_text()}")
            time.sleep(0.001)
        return True

    def send(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if not self.has_ended:
            os.kill(self.pid, number)

    def wait_for(self, seconds: float) -> bool:
        """Waits until so many seconds after the program's first own line; returns ``False`` if it has ended before."""
        if not self.wait_until(lambda: bool(self.places)):
            return False
        moment = self.places[0][0] + seconds
        return self.wait_until(lambda: time.monotonic() >= moment)

    def kill_after(self, seconds: float) -> None:
        """Sends SIGKILL so many seconds after the program's first own line, unless it has ended before."""
        self.wait_for(seconds)
        self.send(signal.SIGKILL)

    def end(self) -> Ended:
        """Waits for its end."""
        self.wait_until(lambda: self.has_ended)
        assert self._code is not None
        places = self.places
        seconds = time.monotonic() - places[0][0] if places else 0.0
        return Ended(self._code, self._output.read_text(errors="replace"), places[-1][1] if places else "", seconds)


def _be(settings: Settings, output: Path, function: Callable[[Settings], None]) -> None:
    """What a forked process does; it never returns."""
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        function(settings)
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def undisturbed(settings: Settings, forked: bool = True) -> tuple[Ended, list[tuple[float, str]]]:
    """A run that nothing happens to, and its time line: seconds since its first own line, and what it began then.

    Raises:
        RuntimeError: it failed.
    """
    child = Child(settings, forked)
    ended = child.end()
    if ended.code:
        raise RuntimeError(f"the undisturbed run failed:\n{ended.output}")
    places = child.places
    return ended, [(seconds - places[0][0], place) for seconds, place in places]


def import_all() -> None:
    """Imports into this process what a run imports on its way, so that forked runs need not."""
    with tempfile.TemporaryDirectory() as name:
        child = Child(Settings(name, runtime={"num_episode": 2, "export": ["actor"]}), function=_tell_modules)
        ended = child.end()
        if ended.code:
            raise RuntimeError(f"a first run failed:\n{ended.output}")
        names = Path(name, "modules").read_text().split()
    for name in names:
        if name not in sys.modules and name != "__mp_main__":
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forked runs need not walk over all of this again


def _tell_modules(settings: Settings) -> None:
    kill_program.run(settings)
    Path(settings.folder, "modules").write_text("\n".join(sys.modules))


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that fork runs, each with all imports and no threads."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=import_all)
