"""Whether two answers mean the same, decided by math-verify in a process of its own.

Computer algebra on what a model has written can run for hours or take all memory (``9^{9^{9^{9}}}``), and inside of
machine code neither a signal handler nor a thread stops it. So the work is done by a helper process that ends itself
at its limit of CPU seconds, and is then started anew. CPU seconds, since then the load of the machine changes no
reward. The helper starts with the first question that needs it and ends with its owner. An answer that has ended it
is not asked about again, since a policy repeats itself: each time would cost the limit and a new start.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from chatlearn.errors import ConfigError
from chatlearn.rewards.helper import Channel, Endless, Helper, HelperEndedError, limit_memory, set_alarm, wall_seconds

MAX_ANSWER_CHARACTERS = 1_000
"""Longer answers are nobody's final answer, and are equal to nothing."""

_MAX_KNOWN = 200_000


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
        self._endless = Endless()
        self._helper = Helper(
            __name__, timeout_seconds, patience_seconds=wall_seconds(timeout_seconds), library="math-verify"
        )

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
        with self._helper.lock:
            if texts not in self._known:
                if answer and answer[0] in self._endless:
                    return False
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[texts] = self._decide(texts)
            return self._known[texts]

    def _decide(self, texts: tuple[str, ...]) -> bool:
        try:
            return self._helper.ask(texts)
        except HelperEndedError as end:
            if not end.was_killed:
                self._endless.add(texts[-1])
            return False

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_seconds": self.timeout_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def serve(timeout_seconds: float) -> None:
    """The helper: a gold answer, or a gold answer and an answer, gets ``True`` or ``False``."""
    channel = Channel()
    limit_memory()
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

    def decide(texts: list[str]) -> bool:
        set_alarm(timeout_seconds)
        result = verdict(texts[0], texts[1] if len(texts) > 1 else None)
        set_alarm(0)
        return result

    channel.serve(decide)
