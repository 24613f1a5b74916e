"""A recomputed batch beside what the run has logged of it, as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chatlearn.observe.sample_differences import differences, only_described
from chatlearn.observe.sample_log import Lines

_IDS = ("sample_id", "group_id", "episode")
_HEAD = ("sample", "tokens", "logprobs", "other fields", "first difference")


@dataclass(frozen=True)
class Comparison:
    """Lines of one generation batch, and those of the log.

    Attributes:
        sample: id of the sample that was asked for.
        made: lines of the whole batch.
        logged: lines of the episode that the run has logged.
        episode_ids: all samples that the episode has now.
        before: the first difference in earlier episodes; empty if there is none.
    """

    sample: int
    made: Lines
    logged: Lines
    episode_ids: Collection[int]
    before: str = ""

    @property
    def differs(self) -> bool:
        """Whether anything that was logged of the batch is not the same."""
        return bool(self._lost or any(self._found.values()))

    @property
    def _found(self) -> dict[int, dict[str, str]]:
        """Sample of the batch that is logged -> its differences by field."""
        return {
            sample: differences(self.logged[sample], line) for sample, line in self.made.items() if self._is(sample)
        }

    @property
    def _lost(self) -> list[int]:
        """Logged samples that the episode does not have any more."""
        return [sample for sample in self.logged if sample not in self.episode_ids]

    def _is(self, sample: int) -> bool:
        return sample in self.logged

    def text(self) -> str:
        """A table with a row for each logged sample, the sample that was asked for, and what follows."""
        found = self._found
        rows = [_HEAD, *(self._row(sample, fields) for sample, fields in found.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if others := len(self.made) - len(found):
            table.append(f"({others} further samples of the batch are not logged)")
        return "\n".join([*(table if found else []), "", *self._asked_for(), "", *self._conclusion(found)])

    def _row(self, sample: int, found: Mapping[str, str]) -> tuple[str, ...]:
        line = self.made[sample]
        others = [name for name in found if name not in ("tokens", "logprobs")]
        cells = [_cell(name, line, found) for name in ("tokens", "logprobs")]
        return (str(sample), *cells, f"no: {', '.join(others)}" if others else "yes", next(iter(found.values()), ""))

    def _asked_for(self) -> Iterator[str]:
        """The texts of the sample; all that is known of it where there is no line to compare it with."""
        line = self.made[self.sample]
        names = ("prompt", "response") if self._is(self.sample) else tuple(line)
        yield f"sample {self.sample}"
        yield from (f"  {name}: {_short(repr(line[name]))}" for name in names if name in line and name not in _IDS)

    def _conclusion(self, found: Mapping[int, Mapping[str, str]]) -> Iterator[str]:
        yield self._verdict(found)
        if not self._is(self.sample):
            yield f"note: sample {self.sample} was not logged, so there is nothing to compare it with."
        long = dict.fromkeys(name for sample in found for name in only_described(self.logged[sample]))
        if long:
            yield f"note: the log only describes the numbers of {', '.join(long)}, as they are too many: not compared."
        if self._lost:
            yield f"note: not among the episode's samples any more: {', '.join(map(str, self._lost))}."
        if any("prompt" in fields for fields in found.values()):
            yield "note: the prompts differ: the data set or its order has changed since."
        if self.before:
            yield f"note: the first difference comes before: {self.before}."

    def _verdict(self, found: Mapping[int, Mapping[str, str]]) -> str:
        if not found:
            return "None of the batch was logged."
        wrong = sum(map(bool, found.values()))
        which = f"All {len(found)}" if len(found) > 1 else "The"
        if not self.differs:
            return f"{which} logged line{'s' * (len(found) > 1)} of the batch came out again, bit for bit."
        return f"{wrong} of {len(found)} logged lines of the batch differ."


def _cell(name: str, line: Mapping[str, Any], found: Mapping[str, str]) -> str:
    """Whether a field is the same; a dash where the sample has none."""
    return "no" if name in found else "yes" if name in line else "-"


def _short(text: str) -> str:
    return text if len(text) <= 2000 else f"{text[:1900]} … {text[-80:]} ({len(text)} characters)"
