"""Plain lines where there is no terminal, or a debugger; a live display otherwise, which steps aside."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from chatlearn.observe.progress import Progress

ROW = {"reward/reward": 0.5, "ppo_policy/kl": 0.01, "eval/reward/accuracy": 0.75, "time/samples_per_second": 123.4}


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("ppo", 4, 0, 1)
    for episode in (1, 2):
        progress.update(episode, ROW)
    progress.note("by the way")
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2] == "by the way"
    for part in ("ppo", "episode 2/4", "reward 0.500", "kl 0.010", "eval accuracy 0.750", "samples/s 123", "0:00 left"):
        assert part in lines[1]
    assert "\x1b" not in "".join(lines)


def test_time_left_by_hand(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed after 10 of 40 episodes; 5 more took 60 seconds, so 25 take 300."""
    now = 1000.0
    monkeypatch.setattr("chatlearn.observe.progress.time.monotonic", lambda: now)
    progress = Progress("ppo", 40, 10, 1)
    now = 1060.0
    progress.update(15, {})
    assert "5:00 left" in capsys.readouterr().out


def test_the_interval_thins_lines_out_but_not_evaluations_or_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("ppo", 11, 0, 5)
    for episode in range(1, 12):
        progress.update(episode, {"eval/a": 1.0} if episode == 7 else {})
    shown = [line.split("episode ")[1].split("/")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["5", "7", "10", "11"]


def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the captured output look like one (in the test itself: pytest changes ``sys.stdout`` after fixtures)."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def _no_trace() -> Iterator[None]:
    """Without the trace function of a coverage tool or debugger that runs the tests."""
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@pytest.mark.usefixtures("_no_trace")
def test_plain_lines_under_a_trace_function(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _terminal(monkeypatch)

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        return None

    sys.settrace(trace)
    progress = Progress("ppo", 2, 0, 1)
    progress.update(1, ROW)
    progress.close()
    sys.settrace(None)
    assert capsys.readouterr().out.startswith("ppo  episode 1/2  reward 0.500")


@pytest.mark.usefixtures("_no_trace")
def test_plain_lines_under_a_debugger_that_needs_no_trace_function(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.12 on debuggers may use ``sys.monitoring``; here it is replaced, so the test runs on 3.11 too."""

    _terminal(monkeypatch)

    class Monitoring:
        DEBUGGER_ID = 0

        @staticmethod
        def get_tool(number: int) -> str | None:
            return "bdb" if number == 0 else None

    monkeypatch.setattr(sys, "monitoring", Monitoring, raising=False)
    progress = Progress("ppo", 2, 0, 1)
    progress.update(1, ROW)
    progress.close()
    assert capsys.readouterr().out.startswith("ppo  episode 1/2  reward 0.500")


@pytest.mark.usefixtures("_no_trace")
def test_the_live_display_has_no_thread_and_gives_everything_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _terminal(monkeypatch)
    hook, stdout, threads = sys.breakpointhook, sys.stdout, threading.active_count()
    progress = Progress("ppo", 2, 0, 1)
    assert threading.active_count() == threads
    progress.update(1, ROW)
    progress.note("by the way")
    progress.close()
    progress.close()
    assert sys.breakpointhook is hook
    assert sys.stdout is stdout
    output = capsys.readouterr().out
    assert "\x1b[" in output
    assert "by the way" in output


@pytest.mark.usefixtures("_no_trace")
def test_a_breakpoint_ends_the_live_display_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _terminal(monkeypatch)
    seen = []
    stdout = sys.stdout

    def debugger(*args: Any, **kwargs: Any) -> None:
        seen.append(sys.stdout is stdout)

    monkeypatch.setattr(sys, "breakpointhook", debugger)
    progress = Progress("ppo", 2, 0, 1)
    progress.update(1, ROW)
    assert sys.stdout is not stdout  # redirected, so that prints stand above the display
    breakpoint()
    assert seen == [True]
    assert sys.breakpointhook is debugger
    progress.close()


@pytest.mark.usefixtures("_no_trace")
def test_fast_episodes_do_not_redraw_the_live_display_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _terminal(monkeypatch)
    now = 0.0
    monkeypatch.setattr("chatlearn.observe.progress.time.monotonic", lambda: now)
    progress = Progress("ppo", 100, 0, 1)
    drawn: list[int] = []
    monkeypatch.setattr(progress._live, "update", lambda panel, refresh: drawn.append(episode))
    for episode in range(1, 101):  # 0.03 s each
        now = 0.03 * episode
        progress.update(episode, {"eval/a/accuracy": 1.0} if episode == 50 else ROW if episode < 10 else {})
    progress.close()
    # every row of the first nine holds an evaluation, as does the 50th; the last is always shown
    assert drawn[:9] == list(range(1, 10))
    assert {50, 100} <= set(drawn)
    between = [b - a for a, b in pairwise([e for e in drawn if 10 <= e < 50])]
    assert set(between) == {4}  # 0.1 s is 3.3 episodes
