"""Threads and the driver's thread: what waits for what, and that nobody waits for ever.

What could hang runs in a process of its own, which ends with the stacks of its threads.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatlearn.runtime.threads import Threads

SECONDS = 60.0


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What each program of waiting_cases.py ends with."""
    program = Path(__file__).with_name("waiting_cases.py")
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=2 * SECONDS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in ended.stdout.splitlines()}


@pytest.mark.parametrize(
    "case", ["driver waits for the pool", "driver waits for two", "others ask the driver meanwhile"]
)
def test_modules_that_wait_for_each_other_go_on(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case] == "went through"


@pytest.mark.parametrize("case", ["a step fails before", "a step fails after", "evaluation fails"])
def test_a_failure_ends_a_run_in_which_others_wait_for_the_driver(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case].startswith("StepError ['ValueError: bad reward']")


@pytest.mark.parametrize("case", ["interrupted before", "interrupted after"])
def test_ctrl_c_ends_a_run_in_which_others_wait_for_the_driver(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case].startswith("Interrupted")


def test_what_a_shutdown_drops_has_failed(outcomes: dict[str, str]) -> None:
    assert "came out" not in outcomes
    assert "first" in outcomes
    assert "The cluster was shut down." in outcomes
    assert outcomes["futures outlive the threads"] == "went through"


@pytest.fixture
def threads():
    threads = Threads(2)
    yield threads
    threads.stop()


def waiting_for(*events: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        assert all(event.wait(SECONDS) for event in events)

    return wait


def test_the_driver_runs_nothing_more_once_what_it_waits_for_is_there(threads: Threads) -> None:
    gate, begun, order = threading.Event(), threading.Event(), []
    held = threads.submit((), True, waiting_for(gate), ())
    wanted = threads.submit((), True, waiting_for(begun), ())

    def first(_: None) -> None:
        order.append("first")
        begun.set()
        until = time.monotonic() + SECONDS
        while not wanted.done and time.monotonic() < until:
            time.sleep(0.001)

    threads.submit((), False, first, (held,))
    second = threads.submit((), False, lambda _: order.append("second"), (held,))
    gate.set()
    threads.wait([wanted])
    assert order == ["first"]
    threads.wait([second])
    assert order == ["first", "second"]


def test_on_the_driver_training_goes_ahead(threads: Threads) -> None:
    gate, order = threading.Event(), []
    held = threads.submit((), True, waiting_for(gate), ())
    calls = [
        threads.submit((), False, lambda _, name=name: order.append(name), (held,), ahead=name.startswith("train"))
        for name in ("rollout 1", "train 0", "rollout 2", "train 1")
    ]
    gate.set()
    threads.wait(calls)
    assert order == ["train 0", "train 1", "rollout 1", "rollout 2"]


def test_calls_of_one_order_run_in_turn_and_those_of_several_after_all_of_them(threads: Threads) -> None:
    gate, order = threading.Event(), []

    def call(name: str, *before: threading.Event) -> Callable[[], None]:
        def run() -> None:
            waiting_for(*before)()
            order.append(name)

        return run

    first = threads.submit(("a",), True, call("a0", gate), ())
    other = threads.submit(("b",), True, call("b0"), ())
    both = threads.submit(("a", "b"), True, call("both"), ())
    last = [threads.submit((name,), True, call(f"{name}1"), ()) for name in "ab"]
    threads.wait([other])
    assert order == ["b0"]
    gate.set()
    threads.wait([first, both, *last])
    assert order[:3] == ["b0", "a0", "both"]
    assert sorted(order[3:]) == ["a1", "b1"]


def test_threads_that_nobody_stops_end_with_their_owner() -> None:
    before = set(threading.enumerate())
    threads = Threads(2)
    threads.submit((), True, str, ()).result()
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del threads
    gc.collect()
    for thread in started:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in started)
