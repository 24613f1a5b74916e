"""One fault of each kind, and signals at some phases of a run: what the run says, and that nothing of it is left.

``faults.py`` makes many of each kind, and signals at all phases.
"""

from __future__ import annotations

import random
import signal

import faults
import pytest


@pytest.mark.parametrize("kind", faults.KINDS)
def test_a_fault_is_named_in_time_and_leaves_nothing_behind(kind: str) -> None:
    fault = faults.KINDS[kind](random.Random(1))
    result = faults.inject(fault)
    assert result.problems == [], f"{fault}\n{result.output}"


@pytest.mark.parametrize(
    ("number", "where"),
    [(signal.SIGINT, "forward_step"), (signal.SIGTERM, "setup"), (signal.SIGTERM, "start")],
    ids=["Ctrl-C in a step", "SIGTERM in setup", "SIGTERM while Ray starts"],
)
def test_a_signal_ends_the_run_within_seconds_and_leaves_nothing_behind(number: int, where: str) -> None:
    fault = faults.interruption(number, where)
    result = faults.inject(fault)
    assert result.problems == [], f"{fault}\n{result.output}"
