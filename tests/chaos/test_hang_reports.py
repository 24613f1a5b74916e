"""What a report of a hang says of calls, and how stacks and last words become readable. No Ray is started."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatlearn import BaseModule
from chatlearn.modules.base import describe
from chatlearn.runtime.base import Handle
from chatlearn.runtime.calls import ReplicaSettings, StepCall
from chatlearn.runtime.clients import ClientRef
from chatlearn.runtime.ray import oom, watch
from chatlearn.runtime.ray.losses import remains
from chatlearn.runtime.ray.tasks import Task
from chatlearn.runtime.ray.watch import Hang, dumped, hang_limit, hang_report
from chatlearn.runtime.stacks import Stack, running, users_frames
from chatlearn.runtime.worker import Worker
from chatlearn.sync.inlet import stand_by
from chatlearn.types import SampleIds


def call(place: str, index: int = 0, **constants: Any) -> StepCall:
    return StepCall("forward_step", "experience", 0, index, constants, {}, SampleIds((0,), (0,)), place=place)


def task(number: int, module: str, replica: int, *args: Any, method: str = "run", since: float = 0.0) -> Task:
    made = Task(Handle(module, replica), method, args, "call")
    made.number, made.submitted = number, time.monotonic() - since
    return made


def ended(ago: float) -> Task:
    before = task(0, "policy", 1)
    before.end()
    before.ended = time.monotonic() - ago
    return before


def test_it_says_who_waits_for_whom_and_since_when_a_call_could_run() -> None:
    """Batch 17 was submitted 100 s ago, behind a call that ended 64 s ago."""
    policy = task(1, "policy", 1, call("episode 3, batch 17"), since=100)
    policy.before = ended(ago=64)
    reward = task(2, "reward", 0, call("episode 3, batch 17"), since=100)
    reward.inputs = [policy]
    learner = task(3, "learner", 0, call("episode 3, global batch 4"), since=100)
    learner.inputs = [reward]
    later = task(4, "policy", 1, call("episode 3, batch 19"), since=90)
    later.before = policy
    report = hang_report([later, learner, reward, policy], {}, 60)
    assert report.splitlines() == [
        "No call of any module has ended for 60 s (runtime.hang_timeout_seconds), so the run hangs:",
        "  policy[1].forward_step, episode 3, batch 17, running for 64 s",
        "  reward[0] waits for policy[1].forward_step, episode 3, batch 17, running for 64 s",
        "  learner[0] waits for reward[0].forward_step, episode 3, batch 17, which has not begun",
    ]


def test_a_call_that_is_not_the_next_one_of_its_replica_stands_behind_that() -> None:
    first = task(1, "policy", 0, call("episode 1, batch 4"), since=70)
    second = task(2, "policy", 0, call("episode 1, batch 6"), since=70)
    reward = task(3, "reward", 0, call("episode 1, batch 6"), since=70)
    reward.inputs = [second]
    assert hang_report([first, second, reward], {}, 60).splitlines()[2] == (
        "  reward[0] waits for policy[0].forward_step, episode 1, batch 6, which stands behind policy[0].forward_step, "
        "episode 1, batch 4, running for 70 s"
    )


def test_an_end_that_the_driver_saw_late_was_before_the_quiet_time() -> None:
    policy = task(1, "policy", 1, call("batch 2"), since=500)
    policy.before = ended(ago=0)
    assert "running for 60 s" in hang_report([policy], {}, 60)


def test_a_step_that_asks_names_the_replica_that_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = task(1, "agent", 0, call("batch 5", 5, judge=ClientRef("judge", {}, 2)), since=61)
    found = {Handle("agent", 0): Stack("  in forward_step", asks=True), Handle("judge", 1): Stack("  in judge")}
    monkeypatch.setattr(watch, "_stacks", lambda identities: found)
    report = hang_report([asking], {}, 60)
    assert "  agent[0].forward_step, batch 5, running for 61 s, waits for what it asks judge[1]\n" in report
    assert report.endswith("\n\nagent[0] executes:\n  in forward_step\n\njudge[1] executes:\n  in judge")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (task(1, "policy", 0, method="construct"), "policy[0].__init__"),
        (task(1, "policy", 0, method="setup"), "policy[0].setup"),
        (task(1, "policy", 0, stand_by, method="apply"), "policy[0]: parameter sync"),
        (task(1, "policy", 0, "before_episode", "episode 2", method="hook"), "policy[0].before_episode, episode 2"),
    ],
)
def test_calls_have_the_names_that_a_user_knows(made: Task, words: str) -> None:
    assert str(made) == words


def test_processes_have_time_to_start_whatever_the_limit_of_calls_is() -> None:
    starting, step = task(1, "policy", 0, method="construct"), task(2, "policy", 1, method="setup")
    assert hang_limit([step], 4) == 4
    assert hang_limit([step, starting], 4) == 60
    assert hang_limit([step, starting], 1800) == 1800
    assert hang_limit([starting], None) is None


class Blocking(BaseModule):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun, self.over = threading.Event(), threading.Event()

    def before_episode(self) -> None:
        self.begun.set()
        self.over.wait()


def test_a_stack_is_that_of_the_users_code(tmp_path: Path) -> None:
    settings = ReplicaSettings(seed=0, model_args={}, module_args=None, runtime_args=None)
    worker = Worker(describe(Blocking("blocking")), 0, settings)
    thread = threading.Thread(target=worker.hook, args=("before_episode",), daemon=True)
    thread.start()
    assert worker.module.begun.wait(10)
    with (tmp_path / "dump").open("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    worker.module.over.set()
    thread.join()
    stack = running((tmp_path / "dump").read_text())
    frames = [line for line in stack.text.splitlines() if line.startswith("  File ")]
    assert frames[0].startswith(f'  File "{__file__}", line ')
    assert frames[0].endswith(", in before_episode")
    assert stack.text.splitlines()[1] == "    self.over.wait()"
    assert all("chatlearn/runtime" not in frame for frame in frames)
    assert not stack.asks
    assert str(running("Current thread 0x1 (most recent call first):\n  <no Python frame>")) == "idle"


def test_both_forms_of_stacks_are_read(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("def outer():\n    inner()\ndef inner():\n    wait()\n")
    dump = (
        f'Thread 0x1 (most recent call first):\n  File "{source}", line 4 in inner\n  File "{source}", line 2 in outer'
    )
    trace = f'  File "{source}", line 2, in outer\n    x\n  File "{source}", line 4, in inner\n    y\n'
    expected = f'  File "{source}", line 2, in outer\n    inner()\n  File "{source}", line 4, in inner\n    wait()'
    assert users_frames(dump) == users_frames(trace) == expected


def test_what_a_process_wrote_while_it_was_asked_is_not_why_it_died(tmp_path: Path) -> None:
    words, log = tmp_path / "words", tmp_path / "log"
    log.write_text(":actor_name:Host\nlast line\n")
    words.write_text('Thread 0x1 (most recent call first):\n  File "/x/mine.py", line 4 in inner\n')
    left = remains(str(words), str(log))
    assert (left.exit_code, left.crash, left.frames, left.log) == ("", "", "", "  last line")
    with words.open("a") as file:
        file.write('os._exit(7) was called:\n  File "/x/mine.py", line 9, in leave\n    os._exit(7)\n')
    left = remains(str(words), str(log))
    assert (left.exit_code, left.frames) == ("7", '  File "/x/mine.py", line 9, in leave')


def test_a_crash_tells_what_the_thread_that_crashed_was_executing(tmp_path: Path) -> None:
    program = (
        "import faulthandler, os, threading, time\n"
        f"faulthandler.enable(open({str(tmp_path / 'words')!r}, 'w'), all_threads=True)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "def crash():\n    os.abort()\n"
        "crash()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    left = remains(str(tmp_path / "words"), "")
    assert left.crash == "Aborted"
    assert left.frames.splitlines()[-1] == '  File "<string>", line 5, in crash'
    assert "threading" not in left.frames


def test_a_process_that_is_stopped_and_one_that_is_gone_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_DUMP_SECONDS", 600.0)  # which others have to answer in
    program = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
    os.waitpid(program.pid, os.WUNTRACED)
    gone = subprocess.Popen(["true"])
    gone.wait()
    try:
        stopped, ended = dumped([(program.pid, str(tmp_path / "1")), (gone.pid, str(tmp_path / "2"))])
    finally:
        program.kill()
        program.wait()
    assert f"process {program.pid} is stopped" in str(stopped)
    assert str(ended) == f"  process {gone.pid} is gone"


def test_a_hang_is_over_once_one_of_its_calls_has_ended_and_keeps_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[str] = []
    monkeypatch.setattr(watch.api, "ready", lambda refs: [ref for ref in refs if ref in there])
    tasks = [task(1, "policy", 0, call("batch 1")), task(2, "policy", 1, call("batch 2"))]
    tasks[0].ending, tasks[1].ending = "first", "second"
    hang = Hang(tasks, {}, 60)
    assert hang.report == hang_report(tasks, {}, 60)
    assert hang.keeps(["first"])
    assert hang.keeps(["first", "second"])
    assert not hang.keeps(["second", "of a new call"])
    there.append("second")
    assert not hang.keeps(["first"])


def test_kills_of_the_kernel_count_from_the_start_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 5, 6])
    monkeypatch.setattr(oom, "oom_kills", lambda: next(counts))
    told = oom.note()
    assert oom.kills_since(told) == 2
    assert oom.kills_since("nothing") == 0


def test_the_kernel_counts_the_processes_that_it_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/vmstat": "pgfault 12\noom_kill 4\n",
        "/proc/self/cgroup": "4:memory:/job\n0::/job\n",
        "/sys/fs/cgroup/job/memory.events": "low 0\noom 9\noom_kill 7\n",
    }
    monkeypatch.setattr(oom, "_read", lambda path: files.get(path, ""))
    assert oom.oom_kills() == 7
    files.clear()
    assert oom.oom_kills() is None


@pytest.mark.parametrize("trace", [None, lambda *args: None], ids=["no debugger", "a debugger"])
def test_a_debugger_in_the_driver_stops_the_clock(trace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    def wait(refs: list[str], num: int = 1, timeout: float | None = None) -> tuple[list[str], list[str]]:
        asked.append(timeout)
        return (["ref"], []) if timeout is None else ([], ["ref"])

    monkeypatch.setattr(watch, "api", SimpleNamespace(wait=wait))
    monkeypatch.setattr(watch.sys, "gettrace", lambda: trace)
    assert watch.wait_for_any(["ref"], list, 0.01) is (trace is not None)
    assert (None in asked) is (trace is not None)
