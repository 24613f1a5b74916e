"""Rewards for the form of a completion: exact text, a pattern, what it contains, how long it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from chatlearn.errors import ConfigError
from chatlearn.guards import is_sequence
from chatlearn.rewards.columns import column_of, num_tokens

_OTHER = r"(?:(?!</?think>|</?answer>).)*"
THINK_ANSWER = rf"\s*<think>{_OTHER}</think>\s*<answer>{_OTHER}</answer>\s*"
"""``<think>…</think><answer>…</answer>`` and nothing else, each tag once."""

Whitespace = Literal["keep", "strip", "collapse", "remove"]
Unit = Literal["tokens", "words", "characters"]


class ExactMatch:
    """1 where a completion is the answer, else 0. A sample without an answer is unscorable (``None``).

    Args:
        ignore_case: ``Paris`` equals ``paris``.
        whitespace: ``keep`` compares every blank, ``strip`` leaves out those at both ends, ``collapse`` also takes
            several in a row for one, ``remove`` leaves out all.
        column: column of the answers: a text, or a list of texts of which any will do.

    Raises:
        ConfigError: an unknown ``whitespace``.
    """

    def __init__(self, ignore_case: bool = False, whitespace: Whitespace = "strip", *, column: str = "answer") -> None:
        _check_choice("whitespace", whitespace, get_args(Whitespace))
        self.ignore_case, self.column = ignore_case, column
        self.whitespace: Whitespace = whitespace

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Scores completions, by the column of answers.

        Returns:
            B values: 1, 0, or ``None``.

        Raises:
            DataError: there is no such column.
        """
        answers = column_of(columns, self.column, "ExactMatch")
        return [self._score(*pair) for pair in zip(completions, answers, strict=True)]

    def _score(self, completion: str, answer: Any) -> float | None:
        answers = _texts(answer)
        return float(self._plain(completion) in map(self._plain, answers)) if answers else None

    def _plain(self, text: str) -> str:
        text = text.casefold() if self.ignore_case else text
        if self.whitespace in ("collapse", "remove"):
            return (" " if self.whitespace == "collapse" else "").join(text.split())
        return text.strip() if self.whitespace == "strip" else text


class Contains:
    """Share of the wanted texts that a completion contains: 1 for all of them, 0 for none.

    Args:
        texts: the wanted ones; left out, those of ``column`` (a text, or a list of texts).
        ignore_case: ``Paris`` is found in ``paris``.
        column: read where ``texts`` is left out. A sample without texts there is unscorable (``None``).
    """

    def __init__(
        self, texts: str | Sequence[str] | None = None, ignore_case: bool = False, *, column: str = "answer"
    ) -> None:
        self.texts = None if texts is None else _texts(texts)
        self.ignore_case, self.column = ignore_case, column
        if self.texts == []:
            raise ConfigError("Contains: texts is empty. Name at least one text, or leave it out to read a column.")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Scores completions.

        Returns:
            B values, 0 to 1, or ``None``.

        Raises:
            DataError: there is no such column, and no ``texts``.
        """
        if self.texts is not None:
            return [self._score(completion, self.texts) for completion in completions]
        wanted = column_of(columns, self.column, "Contains")
        return [self._score(completion, _texts(texts)) for completion, texts in zip(completions, wanted, strict=True)]

    def _score(self, completion: str, texts: list[str]) -> float | None:
        plain: Callable[[str], str] = str.casefold if self.ignore_case else str
        return sum(plain(text) in plain(completion) for text in texts) / len(texts) if texts else None


class RegexFormat:
    """1 where a whole completion has the form of a regular expression, else 0.

    Args:
        pattern: the expression; ``.`` stands for line ends too. Left out, :data:`THINK_ANSWER`:
            ``<think>…</think><answer>…</answer>``.
        anywhere: the form may stand anywhere in the completion.

    Raises:
        ConfigError: the pattern is no regular expression.
    """

    def __init__(self, pattern: str = THINK_ANSWER, *, anywhere: bool = False) -> None:
        self.pattern, self.anywhere = pattern, anywhere
        try:
            self._compiled = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(
                f"pattern {pattern!r} is no regular expression: {error}. In YAML, put it between single quotes."
            ) from error

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float | None]:
        """Scores completions: B values, 1 or 0."""
        match = self._compiled.search if self.anywhere else self._compiled.fullmatch
        return [float(match(completion) is not None) for completion in completions]


class LengthPenalty:
    """``-per_unit * max(0, length - free)``: a price on length, to be added to another reward.

    Args:
        per_unit: what each unit beyond ``free`` costs; at least 0.
        free: length that costs nothing.
        unit: ``tokens`` (sampled ones, from the column ``response_mask``), ``words`` or ``characters``.
        floor: the lowest value, at most 0; ``None`` for none.

    Raises:
        ConfigError: an unknown unit, ``per_unit`` or ``free`` below 0, or ``floor`` above it.
    """

    def __init__(self, per_unit: float, free: int = 0, unit: Unit = "tokens", floor: float | None = -1.0) -> None:
        _check_choice("unit", unit, get_args(Unit))
        for name, value in (("per_unit", per_unit), ("free", free)):
            if not value >= 0:
                raise ConfigError(f"LengthPenalty: {name} must be at least 0, got {value!r}.")
        if floor is not None and not floor <= 0:
            raise ConfigError(f"LengthPenalty: floor must be at most 0, or null for none, got {floor!r}.")
        self.per_unit, self.free, self.floor = per_unit, free, floor
        self.unit: Unit = unit

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Scores completions: B values from ``floor`` to 0.

        Raises:
            DataError: lengths are counted in tokens, and the batch has no ``response_mask``.
        """
        return [self._score(length) for length in self._lengths(completions, columns)]

    def _score(self, length: int) -> float:
        value = -self.per_unit * max(0, length - self.free)
        return value if self.floor is None else max(self.floor, value)

    def _lengths(self, completions: list[str], columns: Any) -> list[int]:
        if self.unit == "tokens":
            return num_tokens(column_of(columns, "response_mask", "LengthPenalty"))
        return [len(text.split()) if self.unit == "words" else len(text) for text in completions]


class OverlongPenalty:
    """Soft overlong punishment of DAPO: Yu et al. 2025, arXiv:2503.14476, eq. 13.

    ::

        0                                            length <= max_length - buffer
        (max_length - buffer - length) / buffer      up to max_length
        -1                                           above

    The same as :func:`chatlearn.algorithms.lengths.overlong_penalty`, as a reward: lengths are the numbers of sampled
    tokens of the column ``response_mask``.

    Args:
        max_length: from here on the penalty is whole; in tokens. In the paper the limit of generation.
        buffer: length of the slope before it; in tokens, in 1 .. ``max_length``.

    Raises:
        ConfigError: ``buffer`` does not lie in 1 .. ``max_length``.
    """

    def __init__(self, max_length: int, buffer: int) -> None:
        if not 1 <= buffer <= max_length:
            raise ConfigError(
                f"OverlongPenalty: buffer must lie in 1 .. max_length, got buffer {buffer!r} and max_length "
                f"{max_length!r}."
            )
        self.max_length, self.buffer = max_length, buffer

    def __call__(self, prompts: list[str], completions: list[str], response_mask: Sequence[Any]) -> list[float | None]:
        """Scores completions: B values from -1 to 0, by ``response_mask`` ``[B, T]``."""
        start = self.max_length - self.buffer
        return [max(-1.0, min(0.0, (start - length) / self.buffer)) for length in num_tokens(response_mask)]


def _texts(value: Any) -> list[str]:
    """Texts of an entry that is one, or several; numbers count as texts."""
    if value is None:
        return []
    return [str(part) for part in value] if is_sequence(value) else [str(value)]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: there is no {value!r}; choose from {', '.join(choices)}.")
