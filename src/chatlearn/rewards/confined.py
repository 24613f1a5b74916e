"""Scorers of reasoning-gym that hand the answer to Python's ``eval``, in a process that can do nothing but score.

Owner, helper and answer are three processes. The helper imports the library once, and forks for each answer. The
fork gives up its rights (:mod:`chatlearn.rewards.restrict`), scores the answer, writes the score to a pipe and is gone:
what an answer leaves behind, a changed module say, meets no other answer. The helper runs no answer itself.

This guards the machine, not the reward: code that runs where the score is made can give itself any score.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import time
import warnings
from typing import Any, NoReturn

from chatlearn.errors import DataError
from chatlearn.rewards.helper import Channel, Endless, Helper, HelperEndedError, limit_memory, wall_seconds
from chatlearn.rewards.restrict import leave_networks, refuse_events, restrict

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# reasoning-gym leaves some types open.

EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Data sets whose scorer evaluates the answer."""

ANSWER_SECONDS = 10.0
"""CPU seconds for one answer."""

_MAX_REPLY_BYTES = 4_000
_ALGEBRA = (
    *("assumptions", "calculus", "combinatorics", "concrete", "discrete", "functions", "integrals", "logic"),
    *("matrices", "ntheory", "physics.units", "polys", "series", "sets", "simplify", "solvers", "tensor"),
)
"""Packages of sympy parts of which it imports when they are used."""
_TIME = (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL) if hasattr(signal, "SIGPROF") else ()


class NoScoreError(DataError):
    """The scorer raises for an answer, or the answer has run into a limit."""


class ConfinedScorer:
    """A data set's scorer in a helper process, which starts with the first answer.

    Args:
        dataset: one of :data:`EVALUATING`.
        config: all fields of its config, as JSON can say them.

    Raises:
        DataError: this system can't fork (Windows).
    """

    def __init__(self, dataset: str, config: dict[str, Any]) -> None:
        if not hasattr(os, "fork"):
            raise DataError(
                f"reasoning-gym's scorer of {dataset!r} runs answers as Python, which chatlearn does in a forked "
                "process only, and this system has none. Use Linux or macOS (on Windows: WSL), or another data set."
            )
        self._dataset = dataset
        self._endless = Endless()
        wait = wall_seconds(ANSWER_SECONDS)  # then the helper ends an answer that sleeps in place of working
        self._helper = Helper(
            *(__name__, dataset, config, ANSWER_SECONDS, wait), patience_seconds=2 * wait, library="reasoning-gym"
        )

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        """The library's score, 0 to 1.

        Raises:
            NoScoreError: the scorer raises, or the answer does what it may not, or needs more than it may.
            DataError: the helper doesn't start.
        """
        case = repr([answer, entry])
        if case in self._endless:
            raise self._no_score(answer, "has run into its limit of time before")
        reply = self._ask([answer, entry])
        if "score" in reply:
            return float(reply["score"])
        if "raised" in reply:
            raise self._no_score(answer, f"raises {reply['raised']}")
        if "refused" in reply:
            raise self._no_score(answer, f"wants to do what an answer may not: {reply['refused']}")
        if reply["ended"] in _TIME:
            self._endless.add(case)
        raise self._no_score(answer, f"ends its process (status {reply['ended']}; the limit is {ANSWER_SECONDS} s)")

    def _ask(self, question: list[Any]) -> dict[str, Any]:
        try:
            return self._helper.ask(question)
        except HelperEndedError:  # by no answer's fault, as far as one can see: they run in forks
            try:
                return self._helper.ask(question)
            except HelperEndedError:
                return {"ended": None}

    def _no_score(self, answer: str, what: str) -> NoScoreError:
        shown = answer if len(answer) <= 100 else answer[:100] + "…"
        return NoScoreError(f"reasoning-gym's scorer of {self._dataset!r}, given the answer {shown!r}, {what}.")


# -- In the helper -----------------------------------------------------------------------------------------------------


def serve(dataset: str, config: dict[str, Any], cpu_seconds: float, wait_seconds: float) -> None:
    """The helper: an answer and its item get a reply with one key, ``score``, ``raised``, ``refused`` or ``ended``."""
    channel = Channel()
    limit_memory()
    import reasoning_gym

    scorer = reasoning_gym.create_dataset(dataset, **config)
    _prepare(scorer)
    leave_networks()

    def score(question: list[Any]) -> dict[str, Any]:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            _score(scorer, question[0], question[1], writer, cpu_seconds)
        os.close(writer)
        reply = _read(reader, channel.questions.fileno(), time.monotonic() + wait_seconds)
        os.close(reader)
        os.kill(process, signal.SIGKILL)
        with contextlib.suppress(OSError):  # what it has started, if the system let it
            os.killpg(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return _checked(reply) or {"ended": status}

    channel.serve(score)


def _prepare(scorer: Any) -> None:
    """Does once what each fork would do anew, or can't do any more: imports, and filling the caches of algebra."""
    warnings.simplefilter("ignore")  # showing one opens files
    importlib.import_module("unicodedata")  # by the compiler, for letters that aren't ASCII
    if {"sympy", "sp", "parse_expr"} & scorer.score_answer.__globals__.keys():
        _import_algebra()
    item = scorer[0]
    scorer.score_answer(item["answer"], item)  # made by the library just now, by nobody else
    gc.freeze()


def _import_algebra() -> None:
    for name in _ALGEBRA:
        package = importlib.import_module(f"sympy.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not {"tests", "benchmarks"} & set(module.name.split(".")) and not module.name.endswith("_doc"):
                importlib.import_module(module.name)


def _score(scorer: Any, answer: str, entry: dict[str, Any], writer: int, cpu_seconds: float) -> NoReturn:
    """The fork: one score, and the end, whatever happens."""
    end, write, to_json = os._exit, os.write, json.dumps

    def refuse(event: str) -> None:
        write(writer, to_json({"refused": event}).encode())
        end(1)

    try:
        restrict(writer, cpu_seconds)
        refuse_events(refuse)
        try:
            reply = {"score": float(scorer.score_answer(answer, entry))}
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            reply = {"raised": f"{type(error).__name__}: {error}"[:1_000]}
        write(writer, to_json(reply).encode())
    finally:
        end(1)


def _read(reader: int, questions: int, deadline: float) -> bytes:
    """What the fork says until it ends, until there is too much, until the deadline or until the owner is gone."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(questions, select.POLLIN)
    said = b""
    while len(said) <= _MAX_REPLY_BYTES:
        ready = [at for at, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1_000)]
        part = os.read(reader, _MAX_REPLY_BYTES) if ready == [reader] else b""
        if not part:
            break
        said += part
    return said


def _checked(said: bytes) -> dict[str, Any] | None:
    """A reply of the one or other form; anything may stand there, for the answer may have written it."""
    try:
        reply = json.loads(said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or len(reply) != 1:
        return None
    [(kind, value)] = reply.items()
    is_score = kind == "score" and isinstance(value, float) and 0 <= value <= 1
    return reply if is_score or (kind in ("raised", "refused") and isinstance(value, str)) else None
