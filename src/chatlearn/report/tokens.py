"""A section about single tokens: where sampler and trainer disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from chatlearn.guards import is_dict, is_list
from chatlearn.report.charts import number
from chatlearn.report.markup import html_table, missing_note, note
from chatlearn.report.run import RunData, finite, read_object

MAX_RESPONSES = 6
"""Responses that a page shows by their tokens."""

MAX_TOKENS = 300
"""Tokens of a response that a page shows."""

DIFFERENCES = (0.01, 0.05, 0.2, math.log(2))
"""Absolute differences of log-probability from which on a token is shaded, lightly to strongly."""

_NUM_WORST = 3


def tokens(run: RunData) -> str:
    """Responses of the first and the last logged episode on whose tokens sampler and trainer differ most."""
    found = [compared for name, rows in run.first_and_last.items() for row in rows if (compared := _compare(name, row))]
    if not found:
        return missing_note(
            "No logged sample has the log-probabilities of both sampler and trainer (logprobs and old_logprobs; a "
            "trainer's stand there if the environment's flow computes them)."
        )
    texts = TokenTexts(run.folder)
    worst = sorted(found, key=lambda each: each.largest, reverse=True)[:MAX_RESPONSES]
    keys = " ".join(
        f'<i class="differs{index + 1}"></i> from {number(level)}' for index, level in enumerate(DIFFERENCES)
    )
    shades = (
        f'<p class="note shades">Shaded by the absolute difference of log-probability: {keys} (a factor of 2). '
        f"The {len(worst)} of {len(found)} logged responses with the largest differences.</p>"
    )
    nameless = "" if texts.known else note("Tokens stand as numbers: the run folder holds no tokenizer (policy/).")
    return shades + nameless + "".join(_response(each, texts) for each in worst)


@dataclass(frozen=True)
class Compared:
    """A response under two models.

    Attributes:
        title: which one it is.
        tokens: ids.
        sampler: log-probability of each token; NaN where it is not known.
        trainer: the same.
    """

    title: str
    tokens: list[int]
    sampler: list[float]
    trainer: list[float]

    @cached_property
    def differences(self) -> list[float]:
        """Trainer minus sampler."""
        return [trainer - sampler for sampler, trainer in zip(self.sampler, self.trainer, strict=True)]

    @cached_property
    def largest(self) -> float:
        """The largest absolute difference; infinity where one is not finite."""
        return max(abs(value) if math.isfinite(value) else math.inf for value in self.differences)

    @property
    def mean_k3(self) -> float:
        """Mean k3 estimate (Schulman 2020) of the KL from sampler to trainer; NaN without finite differences."""
        known = [min(value, 50.0) for value in self.differences if math.isfinite(value)]
        return sum(math.expm1(value) - value for value in known) / len(known) if known else math.nan


class TokenTexts:
    """Texts of token ids, from the ``tokenizer.json`` of a model that the run has exported.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._file = next(
            iter(sorted(folder.glob("*/tokenizer.json"), key=lambda path: path.parent.name != "policy")), None
        )

    @property
    def known(self) -> bool:
        """Whether there are texts."""
        return bool(self._pieces or self._added)

    def __call__(self, token: int) -> str:
        """The text of one token; bytes that are no character alone, and unknown ids, are named."""
        if token in self._added:
            return self._added[token]
        piece = self._pieces.get(token)
        if piece is None:
            return f"⟨{token}⟩"
        return _from_bytes(piece) if self._is_byte_level else piece.replace("▁", " ")

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_object(self._file) if self._file else {}

    @cached_property
    def _pieces(self) -> dict[int, str]:
        model = self._content.get("model")
        vocabulary = model.get("vocab") if is_dict(model) else None
        if is_dict(vocabulary):
            return {index: str(piece) for piece, index in vocabulary.items() if isinstance(index, int)}
        if is_list(vocabulary):
            return {index: str(entry[0]) for index, entry in enumerate(vocabulary) if is_list(entry) and entry}
        return {}

    @cached_property
    def _added(self) -> dict[int, str]:
        added = self._content.get("added_tokens")
        entries = [entry for entry in added if is_dict(entry)] if is_list(added) else []
        return {entry["id"]: str(entry["content"]) for entry in entries if "id" in entry and "content" in entry}

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in _types(self._content.get("decoder"))


def _compare(name: str, row: Mapping[str, Any]) -> Compared | None:
    """A row as a comparison, if it has what that takes."""
    ids, sampler, trainer = (row.get(key) for key in ("tokens", "logprobs", "old_logprobs"))
    if not (is_list(ids) and is_list(sampler) and is_list(trainer)) or not len(ids) == len(sampler) == len(trainer) > 0:
        return None
    if not all(isinstance(token, int) for token in ids):
        return None
    return Compared(f"{name}, sample {row.get('sample_id')}", ids, _floats(sampler), _floats(trainer))


def _response(found: Compared, texts: TokenTexts) -> str:
    """The tokens in their order, and the ones that differ most as a table."""
    words = [texts(token) for token in found.tokens]
    spans = [
        f'<span class="token{_shade(difference)}" title="{_title(found, index)}">{escape(words[index])}</span>'
        for index, difference in enumerate(found.differences[:MAX_TOKENS])
    ]
    more = f" … {len(words) - MAX_TOKENS} more tokens" if len(words) > MAX_TOKENS else ""
    order = sorted(range(len(words)), key=lambda index: _size(found.differences[index]), reverse=True)
    worst = [
        (
            str(index + 1),
            f'<span class="text">{escape(words[index])}</span>',
            *map(number, (found.sampler[index], found.trainer[index], found.differences[index])),
        )
        for index in order[:_NUM_WORST]
    ]
    title = f"{found.title}: mean k3 {number(found.mean_k3)}, largest difference {number(found.largest)}"
    head = ("token", "text", "sampler", "trainer", "difference")
    return f'<h3>{escape(title)}</h3><p class="text tokens">{"".join(spans)}{more}</p>{html_table(head, worst)}'


def _title(found: Compared, index: int) -> str:
    both = f"sampler {number(found.sampler[index])}, trainer {number(found.trainer[index])}"
    return escape(f"token {index + 1}: {both}, difference {number(found.differences[index])}")


def _size(difference: float) -> float:
    return abs(difference) if math.isfinite(difference) else math.inf


def _shade(difference: float) -> str:
    level = sum(_size(difference) >= each for each in DIFFERENCES)
    return f" differs{level}" if level else ""


def _floats(values: Sequence[Any]) -> list[float]:
    found = map(finite, values)
    return [math.nan if value is None else value for value in found]


def _types(part: Any) -> Iterator[str]:
    """The types of a part of a tokenizer, and of the parts it is a sequence of."""
    if is_dict(part):
        yield str(part.get("type"))
        for each in (*part.get("decoders", ()), *part.get("pretokenizers", ())):
            yield from _types(each)


def _byte_values() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_VALUES = _byte_values()


def _from_bytes(piece: str) -> str:
    """The text of a byte-level piece; bytes of half a character are shown as such."""
    if not all(character in _BYTE_VALUES for character in piece):
        return piece
    return bytes(_BYTE_VALUES[character] for character in piece).decode("utf-8", "backslashreplace")
