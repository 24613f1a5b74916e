"""Two drivers never write one run folder: real processes, killed ones too.

Not covered: file systems without locks other than by a stand-in for ``flock``, and Windows.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatlearn.checkpoint import run_lock
from chatlearn.checkpoint.run_folder import RunFolder, claim_run_folder
from chatlearn.checkpoint.store import CheckpointStore, RunState
from chatlearn.config import Config
from chatlearn.errors import CheckpointError

DRIVER = """\
import sys
from chatlearn.checkpoint.run_folder import claim_run_folder
from chatlearn.config import Config

folder = claim_run_folder(Config(runtime={"output_dir": sys.argv[1], "exp_name": "ppo", "resume": sys.argv[2]}).runtime)
(folder.path / "config.yaml").write_text("runtime: {}\\n")
print("claimed", folder.path, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Driver:
    """A process that has claimed the run folder, and runs lines of Python in it."""

    def __init__(self, parent: Path, resume: str = "auto") -> None:
        words = [sys.executable, "-c", DRIVER, str(parent), resume]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()

    def run(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def driver(resume: str = "auto") -> Driver:
        drivers.append(Driver(tmp_path, resume))
        return drivers[-1]

    yield driver
    for each in drivers:
        if each.process.poll() is None:
            each.end()


def _claim(parent: Path, resume: str = "auto") -> RunFolder:
    return claim_run_folder(Config(runtime={"output_dir": str(parent), "exp_name": "ppo", "resume": resume}).runtime)


def test_a_folder_in_use_is_refused_and_its_process_named(tmp_path: Path, start: Callable[..., Driver]) -> None:
    first = start()
    assert first.said == f"claimed {tmp_path / 'ppo'}"
    message = (
        rf"{re.escape(str(tmp_path / 'ppo'))} is in use by process {first.process.pid} on host "
        rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d: wait for it, stop it, or choose "
        r"another runtime\.exp_name\."
    )
    for resume in ("auto", str(tmp_path / "ppo")):
        with pytest.raises(CheckpointError, match=message):
            _claim(tmp_path, resume)


def test_a_checkpoint_of_a_folder_in_use_is_refused_too(tmp_path: Path, start: Callable[..., Driver]) -> None:
    start()
    with CheckpointStore(tmp_path / "ppo" / "checkpoints").write(RunState(episode=1), {"run": str(tmp_path / "ppo")}):
        pass
    with pytest.raises(CheckpointError, match="is in use by process"):
        _claim(tmp_path, str(tmp_path / "ppo" / "checkpoints" / "episode-000001"))


def test_a_new_run_beside_it_is_free(tmp_path: Path, start: Callable[..., Driver]) -> None:
    start()
    assert _claim(tmp_path, "never").path == tmp_path / "ppo-2"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_is_free_once_its_process_was_killed(
    number: int, tmp_path: Path, start: Callable[..., Driver]
) -> None:
    start().end(number)
    assert (tmp_path / "ppo" / run_lock.NAME).exists()
    assert _claim(tmp_path).path == tmp_path / "ppo"
    assert json.loads((tmp_path / "ppo" / run_lock.NAME).read_text())["process"] == os.getpid()


def test_a_folder_is_free_after_its_release_while_the_process_lives(
    tmp_path: Path, start: Callable[..., Driver]
) -> None:
    first = start()
    first.run("folder.release(); folder.release()")
    assert not (tmp_path / "ppo" / run_lock.NAME).exists()
    assert _claim(tmp_path).path == tmp_path / "ppo"
    assert first.process.poll() is None


def test_each_claim_of_a_process_is_released_for_itself(tmp_path: Path, start: Callable[..., Driver]) -> None:
    """A recipe claims the folder, and then the engine in it does; the recipe goes on after the engine's end."""
    first = start()
    first.run(
        "again = claim_run_folder(Config(runtime={'output_dir': sys.argv[1], 'resume': str(folder.path)}).runtime)"
    )
    first.run("again.release(); again.release()")
    with pytest.raises(CheckpointError, match=f"process {first.process.pid} "):
        _claim(tmp_path)
    first.run("folder.release()")
    assert _claim(tmp_path).path == tmp_path / "ppo"


def test_a_finished_run_that_is_still_measured_is_refused(tmp_path: Path, start: Callable[..., Driver]) -> None:
    """Its recipe writes its figures after the end of the engine."""
    first = start()
    (tmp_path / "ppo" / "result.json").write_text('{"status": "finished"}')
    with pytest.raises(CheckpointError, match=f"process {first.process.pid} "):
        _claim(tmp_path)
    first.run("folder.release()")
    assert _claim(tmp_path).finished


def test_a_finished_run_that_cannot_be_written_counts_as_free(tmp_path: Path, start: Callable[..., Driver]) -> None:
    start().end()
    (tmp_path / "ppo" / "result.json").write_text('{"status": "finished"}')
    (tmp_path / "ppo" / run_lock.NAME).unlink()
    (tmp_path / "ppo" / run_lock.NAME).mkdir()  # opening it for writing fails, for every user
    assert _claim(tmp_path).finished


def test_a_run_that_ended_before_it_was_ours_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's last words come between the first look and the lock."""
    _claim(tmp_path).release()
    (tmp_path / "ppo" / "config.yaml").write_text("runtime: {}\n")
    take = run_lock.claim

    def ended(folder: Path) -> run_lock.Claim:
        (folder / "result.json").write_text('{"status": "finished"}')
        return take(folder)

    monkeypatch.setattr(run_lock, "claim", ended)
    assert _claim(tmp_path).finished


def test_a_child_of_the_process_does_not_keep_the_lock(tmp_path: Path, start: Callable[..., Driver]) -> None:
    first = start()
    first.run("import os, time; child = os.fork(); child or (time.sleep(60), os._exit(0))")
    first.run("print(child, file=open(sys.argv[1] + '/child', 'w'), flush=True)")
    first.end()
    try:
        assert _claim(tmp_path).path == tmp_path / "ppo"
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_deleted_folder_is_locked_anew(tmp_path: Path, start: Callable[..., Driver]) -> None:
    first = start()
    first.run("import shutil; shutil.rmtree(folder.path); folder.path.mkdir()")
    first.run("again = claim_run_folder(Config(runtime={'output_dir': sys.argv[1], 'resume': 'auto', "
              "'exp_name': 'ppo'}).runtime)")  # fmt: skip
    with pytest.raises(CheckpointError, match=f"process {first.process.pid} "):
        _claim(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_note(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = _claim(tmp_path)
    assert f"note: {tmp_path / 'ppo'} can't be locked here" in found.note
    found.release()


def test_a_system_without_locks_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "fcntl", None)
    assert "can't be locked here" in _claim(tmp_path).note


def test_a_lock_of_unknown_words_is_respected(tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    with (tmp_path / "ppo" / run_lock.NAME).open("w") as file:
        file.write("{")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="is in use by another process: wait for it"):
            _claim(tmp_path)
