"""The helper process that runs math-verify: its limit, its end, and what it is asked. Times are never asserted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from chatlearn.errors import ConfigError, DataError
from chatlearn.rewards import helper
from chatlearn.rewards.equivalence import MAX_ANSWER_CHARACTERS, Verifier
from chatlearn.rewards.helper import Helper, HelperEndedError


@pytest.fixture(scope="module")
def verifier():
    return Verifier()


def test_a_comparison_that_would_run_for_ever_ends_and_the_next_one_is_answered():
    verifier = Verifier(timeout_seconds=1.0)
    assert not verifier.equal("5", "10000000000!")
    assert verifier.equal("x + 1", "1 + x")


def test_an_answer_that_ran_over_the_limit_is_not_asked_about_again(monkeypatch):
    verifier = Verifier(timeout_seconds=1.0)
    assert not verifier.equal("5", "10000000000!")
    monkeypatch.setattr(Helper, "ask", lambda self, texts: pytest.fail("asked again"))
    assert not verifier.equal("6", "10000000000!")
    assert not verifier.equal("x", "10000000000!")


def test_no_more_endless_answers_are_remembered_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(helper, "_MAX_ENDLESS", 2)

    def ends(self, texts):
        raise HelperEndedError(was_killed=False)

    monkeypatch.setattr(Helper, "ask", ends)
    verifier = Verifier()
    for number in range(5):
        assert not verifier.equal("1", str(number))
        assert len(verifier._endless) <= 2


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [("c + 1", "1 + c", True), ("3 + m", "m + 3", True), ("3 + m", "3", False), ("42", r"42\text{ apples}", True)],
)
def test_letters_at_the_end_are_read_as_letters_and_as_units(verifier, gold, answer, expected):
    assert verifier.equal(gold, answer) is expected


def test_a_helper_that_dies_costs_one_verdict_and_is_replaced(verifier):
    assert verifier.equal("y + 1", "1 + y")
    verifier._helper._child.process.kill()
    verifier._helper._child.process.wait()
    assert not verifier.equal("z + 1", "1 + z")
    assert verifier.equal("1 + z + 0", "1 + z"), "the answer was not to blame"
    assert verifier.equal("a + 1", "1 + a")


def test_a_pair_is_decided_once(verifier, monkeypatch):
    assert verifier.equal("b + 1", "1 + b")
    monkeypatch.setattr(Helper, "ask", lambda self, texts: pytest.fail("asked again"))
    assert verifier.equal("b + 1", "1 + b")


def test_very_long_answers_are_equal_to_nothing_and_not_looked_at(verifier, monkeypatch):
    monkeypatch.setattr(Helper, "ask", lambda self, texts: pytest.fail("asked"))
    long = "1" * (MAX_ANSWER_CHARACTERS + 1)
    assert not verifier.equal("1", long)
    assert not verifier.is_expression(long)


def test_it_works_from_threads_and_leaves_the_programs_alarm_alone(verifier):
    """math-verify's own time limit takes the process's alarm, and refuses to work in a thread."""
    before = signal.getsignal(signal.SIGALRM)
    verdicts = {}

    def ask(number):
        verdicts[number] = verifier.equal(f"x + {number}", f"{number} + x")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(4), True)
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_process_ends_with_its_owner():
    verifier = Verifier()
    assert verifier.is_expression(r"\frac{1}{2}")
    process = verifier._helper._child.process
    del verifier
    assert process.wait(timeout=30) is not None


def test_the_process_ends_with_the_program():
    code = (
        "from chatlearn.rewards.equivalence import Verifier; v = Verifier(); "
        "assert v.equal('c + 1', '1 + c'); print(v._helper._child.process.pid)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)


def test_a_helper_that_can_not_start_says_how_to_find_out_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"does not start.*/bin/false -c \"import math_verify\""):
        Verifier().is_expression("x")


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="timeout_seconds must be above 0"):
        Verifier(limit)
