"""Modules that a step has been given: inside of it, their steps can be called like functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatlearn.errors import MissingStepError, StepError
from chatlearn.guards import kind_of
from chatlearn.runtime.calls import Report, StepCall
from chatlearn.types import Batch, SampleIds, num_rows

Ask = Callable[[str, int, StepCall, tuple[Batch, ...]], tuple[Any, Report]]
"""(module, replica, call, batches) -> output and report; runs a call of another module and waits for it."""


@dataclass(frozen=True)
class ClientRef:
    """A module among the constants of a call, as it travels.

    Attributes:
        name: of the module.
        steps: names of its steps, with the parameters that take data.
        num_replica: replicas that share the calls.
    """

    name: str
    steps: Mapping[str, tuple[str, ...]]
    num_replica: int


class Client:
    """Another module, as a step sees it: ``judge.forward_step(data, rows=[0, 2], greedy=True)``.

    What a step returns that expands or filters has ``source_rows`` (a list of ints) too: for each of its rows the
    number of the row that it was made of.

    Attributes:
        name: of the module.
    """

    def __init__(
        self, ref: ClientRef, ask: Ask, call: StepCall, caller: str, replica: int, reports: list[Report]
    ) -> None:
        self.name = ref.name
        self._ref, self._ask, self._call, self._reports = ref, ask, call, reports
        self._place = f"{caller}[{replica}].{call.step}"
        self._origin = f"{call.origin}/{caller}.{call.step}"  # without the replica: noise is the same on any number

    def __getattr__(self, step: str) -> Callable[..., Batch]:
        if step.startswith("_"):
            raise AttributeError(step)
        if step not in self._ref.steps or step == "train_step":
            why = "can't be called from inside a step" if step == "train_step" else "is no step of it"
            known = ", ".join(name for name in self._ref.steps if name != "train_step") or "none"
            raise MissingStepError(f"{self._place}: {self.name}.{step} {why}; steps to call: {known}.")

        def run(*data: Batch, rows: Sequence[int] | None = None, **constants: Any) -> Batch:
            return self._run(step, data, rows, constants)

        return run

    def _run(self, step: str, data: Sequence[Batch], rows: Sequence[int] | None, constants: dict[str, Any]) -> Batch:
        if not data:
            raise StepError(f"{self._place}: {self.name}.{step} is asked without data. Pass it a batch.")
        call = replace(
            self._call,
            step=step,
            constants=constants,
            ids=self._ids(num_rows(data[0]), rows),
            used=True,
            micro_batch_size=None,
            origin=f"{self._origin}/{len(self._reports)}",
            place=f"{self._call.place}, called by {self._place}",
        )
        replica, asked = call.index % self._ref.num_replica, time.perf_counter()
        output, report = self._ask(self.name, replica, call, tuple(data))
        track, label = f"{self.name}[{replica}]", f"{self.name}.{step}"
        span = (track, label, asked, report.start, report.end, len(call.ids), self._place)
        self._reports.append(replace(report, spans=(span, *report.spans)))
        return output if report.source_rows is None else {**output, "source_rows": list(report.source_rows)}

    def _ids(self, count: int, rows: Sequence[int] | None) -> SampleIds:
        """Whose rows they are: those that the caller names, or all of its own; else nobody's in particular."""
        ids = self._call.ids
        if rows is not None:
            if len(rows) != count:
                raise StepError(f"{self._place}: {self.name} gets {count} rows, but rows= names {len(rows)}.")
            if wrong := [row for row in rows if not 0 <= row < len(ids)]:
                raise StepError(
                    f"{self._place}: rows= names row {wrong[0]} for {self.name}, but the call has the rows 0 to "
                    f"{len(ids) - 1}."
                )
            return ids.take(rows)
        return ids if count == len(ids) else SampleIds(tuple(range(count)), tuple(range(count)), ids.weight_version)


def with_clients(value: Any, replaced: Callable[[Any], Any], kind: type | tuple[type, ...]) -> Any:
    """``value`` with each instance of ``kind`` in nested dicts, lists and tuples replaced."""
    if isinstance(value, kind):
        return replaced(value)
    container = kind_of(value)
    if container is dict:
        return {key: with_clients(part, replaced, kind) for key, part in value.items()}
    if container is list:
        return [with_clients(part, replaced, kind) for part in value]
    if container is tuple:
        return tuple([with_clients(part, replaced, kind) for part in value])
    return value


def refs_in(value: Any) -> Iterator[ClientRef]:
    """The modules among the constants of a call, by the same rules as :func:`with_clients`."""
    if isinstance(value, ClientRef):
        yield value
    elif (container := kind_of(value)) is dict:
        for part in value.values():
            yield from refs_in(part)
    elif container is list or container is tuple:
        for part in value:
            yield from refs_in(part)
