"""Rewards for problems with one right answer: the answer is taken out of a completion and held against the gold one.

Equal texts and equal numbers are seen at once. What is left (``\\frac{1}{2}`` against ``0.5``, ``x + 1`` against
``1 + x``) goes to math-verify (:mod:`chatlearn.rewards.equivalence`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, TypeAlias, get_args

from chatlearn.errors import ConfigError, DataError
from chatlearn.guards import is_mapping
from chatlearn.rewards.columns import column_of, ended
from chatlearn.rewards.equivalence import Verifier

Place: TypeAlias = Literal["any", "boxed", "hash", "tag", "last_number"]
"""Where the answer of a completion stands, see :func:`extract_answer`."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_LAST_NUMBER = re.compile(rf"(?<![\w.)\]])-?\\?\$?(?:{_NUMBER})(?:[eE][-+]?\d+(?!\w)|/\d+)?|(?:{_NUMBER})")
_DECIMAL = re.compile(rf"([-+]?)(?:\\?\$)?([-+]?)((?:{_NUMBER})(?:[eE][-+]?\d{{1,3}})?)")
_FRACTION = re.compile(r"[-+]?\d{1,50}/\d{1,50}")
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_WRAPPED = re.compile(r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)


class MathReward:
    """1 where a completion's answer equals the gold answer, 0 where it doesn't or there is none.

    A gold answer that can't be read makes the sample unscorable (``None``): an empty one, or with ``verify`` one in
    which math-verify finds no expression. The gold answer may be a number, a bare answer, or a whole solution that
    ends in ``#### 42`` (as GSM8K has it), ``\\boxed{42}`` or ``<answer>42</answer>``.

    Two plain decimals are compared exactly, without rounding.

    Args:
        extract: where the completion's answer stands: see :func:`extract_answer`. With ``any``, a completion that is
            nothing but the gold answer is right, whatever stands there (``12:30``).
        verify: hold what is neither equal text nor a plain number against the gold answer by math-verify.
        timeout_seconds: CPU seconds that a comparison may take; one that takes longer counts as unequal, and its answer
            is not compared by math-verify again.
        column: column of the gold answers.

    Raises:
        ConfigError: an unknown ``extract``, or math-verify is needed and not installed.
    """

    def __init__(
        self, extract: Place = "any", *, verify: bool = True, timeout_seconds: float = 2.0, column: str = "answer"
    ) -> None:
        _check_place(extract)
        self.extract: Place = extract
        self.column = column
        self._verifier = Verifier(timeout_seconds) if verify else None

    def __call__(
        self, prompts: list[str], completions: list[str], finished: Sequence[bool] | None = None, **columns: Any
    ) -> list[float | None]:
        """Scores completions.

        Args:
            prompts: B prompts; not read.
            completions: B answers.
            finished: B flags; an answer that was cut off at the length limit gets 0. Without it all count as finished.
            columns: holds the gold answers.

        Returns:
            B values: 1, 0, or ``None``.

        Raises:
            DataError: there is no column of gold answers.
        """
        golds = column_of(columns, self.column, "MathReward")
        rows = zip(completions, golds, ended(finished, len(completions)), strict=True)
        return [self._score(completion, gold, end) for completion, gold, end in rows]

    def _score(self, completion: str, given: Any, finished: bool) -> float | None:
        gold = gold_answer(given)
        if gold is None or not self._readable(gold):
            return None
        if finished and self.extract == "any" and _same_text(gold, _bare(completion)):
            return 1.0
        answer = extract_answer(completion, self.extract) if finished else None
        return float(answer is not None and self._equal(gold, _bare(answer)))

    def _readable(self, gold: str) -> bool:
        return self._verifier is None or _as_fraction(gold) is not None or self._verifier.is_expression(gold)

    def _equal(self, gold: str, answer: str) -> bool:
        if _same_text(gold, answer):
            return True
        numbers = _as_fraction(gold), _as_fraction(answer)
        if None not in numbers and (numbers[0] == numbers[1] or "/" not in gold + answer):
            return numbers[0] == numbers[1]
        return self._verifier is not None and bool(answer) and self._verifier.equal(gold, answer)


def _same_text(first: str, second: str) -> bool:
    """Blanks don't count."""
    return "".join(first.split()) == "".join(second.split())


def extract_answer(text: str, place: Place = "any") -> str | None:
    """The final answer in a text, without blanks around it.

    - ``boxed``: what the last ``\\boxed{…}`` holds.
    - ``hash``: the rest of the line behind the last ``####``.
    - ``tag``: what the last ``<answer>…</answer>`` holds.
    - ``last_number``: the last number: ``-1,234.5``, ``$18``, ``3/4``, ``1e-3``.
    - ``any``: the first of these that is there, in this order.

    Args:
        text: of a completion.
        place: where to look.

    Returns:
        The answer as it is written; ``None`` where there is none, or nothing stands there.

    Raises:
        ConfigError: an unknown place.
    """
    _check_place(place)
    if place == "any":
        found = (finder(text) for finder in _FINDERS.values())
        return next((answer for answer in found if answer), None)
    return _FINDERS[place](text) or None


def gold_answer(given: Any) -> str | None:
    """The gold answer as text: from a number, a bare answer or a whole solution; ``None`` where there is none."""
    if getattr(given, "shape", None) == () and hasattr(given, "item"):  # of an array or a tensor
        given = given.item()
    if isinstance(given, int | float) and not isinstance(given, bool):
        return str(given) if math.isfinite(given) else None
    if not isinstance(given, str):
        return None
    found = next((answer for name in ("boxed", "hash", "tag") if (answer := _FINDERS[name](given))), None)
    if found is None and any(mark in given for mark in ("\\boxed", "####", "<answer>")):
        return None  # a solution that is cut off
    return _bare(given if found is None else found) or None


class Questions(Sequence[dict[str, Any]]):
    """Rows of a file of questions as prompts: each row with ``prompt``, made by a template from its columns.

    Args:
        rows: a sequence of dicts, such as ``read_prompts("train.jsonl")``; it is read row by row.
        template: with the names of columns in braces; a brace that is meant as such is written twice.

    Raises:
        DataError: there are no rows, or the first one lacks a column of the template. A later row says so when its
            turn comes.
    """

    def __init__(self, rows: Sequence[Any], template: str = "{question}") -> None:
        self._rows, self._template = rows, template
        if len(rows) == 0:
            raise DataError("there are no questions. Give at least one row.")
        self._sample(0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._sample(number) for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"question {index} of {len(self)}")
        return self._sample(index % len(self))

    def _sample(self, number: int) -> dict[str, Any]:
        row = self._rows[number]
        if not is_mapping(row):
            raise DataError(f"question {number}: a row is a dict of columns, got {row!r}.")
        columns: Mapping[str, Any] = row
        try:
            return {**columns, "prompt": self._template.format_map(dict(columns))}
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"question {number}: the template {self._template!r} can't be filled "
                f"({type(error).__name__}: {error}). The row has the columns {', '.join(map(str, columns)) or 'none'}; "
                "a brace that is meant as such is written twice, {{ or }}."
            ) from error


def _check_place(place: str) -> None:
    if place not in get_args(Place):
        raise ConfigError(f"extract: there is no {place!r}; choose from {', '.join(get_args(Place))}.")


def _boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for position in range(start, len(text)):
        escaped = text[position - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return None  # cut off inside


def _hash(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n", 1)[0].strip() if mark else None


def _tag(text: str) -> str | None:
    found = _TAG.findall(text)
    return found[-1].strip() if found else None


def _last_number(text: str) -> str | None:
    found = _LAST_NUMBER.findall(text)
    return found[-1] if found else None


_FINDERS = {"boxed": _boxed, "hash": _hash, "tag": _tag, "last_number": _last_number}


def _bare(answer: str) -> str:
    """Without the marks of math mode and the end of a sentence."""
    answer = answer.strip().removesuffix(".").strip()
    if wrapped := _WRAPPED.fullmatch(answer):
        inner = next(group for group in wrapped.groups() if group is not None)
        return answer if "$" in inner else inner.strip()
    return answer


def _as_fraction(text: str) -> Fraction | None:
    """The exact value of a plain number: ``-1,234.50``, ``$18``, ``1e-3``, ``3/4``."""
    if _FRACTION.fullmatch(text):
        numerator, denominator = text.split("/")
        return Fraction(int(numerator), int(denominator)) if int(denominator) else None
    decimal = _DECIMAL.fullmatch(text) if len(text) <= 100 else None
    if decimal is None or (decimal[1] and decimal[2]):
        return None
    return Fraction(decimal[1] + decimal[2] + decimal[3].replace(",", ""))
