"""What the tables of flow forms are built from: toy modules, the same arithmetic in plain Python, entries of a table.

The steps are whole-number arithmetic on the column ``x`` and on columns named after modules, exact in float64 as long
as numbers stay below 2^53: an input that is dropped, doubled or out of order changes the result. They work row by row,
on ndarrays and on tensors ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chatlearn
from chatlearn import BaseModule

Flow = Callable[[Any], Any]


class Toy(BaseModule):
    """Steps that mix all columns of their input.

    Args:
        name: of the module; its steps add a column of that name.
        factor: a whole number; each ``train_step`` adds 1 to it.
        trained: called with (name, the micro-batches) at each ``train_step``.
    """

    thread_safe = True

    def __init__(self, name, factor, trained=None):
        super().__init__(name)
        self.factor, self.trained = factor, trained

    def build_dataset(self, prompts):
        return prompts

    def forward_step(self, data, iteration=0, bonus=0):
        total = sum((i + 1) * data[key] for i, key in enumerate(sorted(data)))
        return {"x": self.factor * data["x"] + bonus, self.name: total + bonus}

    def eval_step(self, data):
        return {"x": data["x"] - self.factor}

    @chatlearn.step
    def compare(self, first, second, *, margin=0):
        return {"x": first["x"] - 2 * second["x"] + margin, self.name: second["x"]}

    @chatlearn.step
    def gather(self, first, *rest):
        return {"x": first["x"] + sum((i + 2) * other["x"] for i, other in enumerate(rest))}

    @chatlearn.step
    def consult(self, data, judge, others=()):
        verdict = judge.eval_step(data)
        for other in others:
            verdict = other.eval_step(verdict)
        return {"x": 3 * verdict["x"]}

    def train_step(self, data, train_info):
        self.factor += 1
        self.trained(self.name, data)


class PlainToy:
    """The arithmetic of :class:`Toy` written out once more, with nothing of the package: steps are just methods, and
    several dicts are merged here.

    Args:
        name: of the module.
        factor: a whole number.
        trained: called with (name, the whole batch) at each ``train_step``.
    """

    def __init__(self, name, factor, trained=None):
        self.name, self.factor, self.trained = name, factor, trained

    def forward_step(self, *batches, data=None, bonus=0):
        data = self._merged(batches, data)
        total = bonus
        for weight, key in enumerate(sorted(data), start=1):
            total = total + weight * data[key]
        return {"x": data["x"] * self.factor + bonus, self.name: total}

    def eval_step(self, *batches, data=None):
        return {"x": self._merged(batches, data)["x"] - self.factor}

    def compare(self, first, second, *, margin=0):
        return {"x": first["x"] - second["x"] - second["x"] + margin, self.name: second["x"]}

    def gather(self, *batches):
        x, *others = (batch["x"] for batch in batches)
        for factor, other in enumerate(others, start=2):
            x = x + factor * other
        return {"x": x}

    def consult(self, data, judge, others=()):
        x = data["x"]
        for each in [judge, *others]:
            x = x - each.factor
        return {"x": x * 3}

    def train_step(self, *batches, data=None):
        self.factor += 1
        self.trained(self.name, self._merged(batches, data))

    @staticmethod
    def _merged(batches, data):
        merged = dict(data or {})
        for batch in batches:
            merged.update(batch)
        return merged


@dataclass(frozen=True)
class Modules:
    """What flows are built from."""

    policy: Any
    reference: Any
    reward: Any
    value: Any

    @property
    def all(self) -> list[Any]:
        return [self.policy, self.reference, self.reward, self.value]


def toy_modules(kind: type = Toy, trained: Callable[[str, Any], None] | None = None) -> Modules:
    """New modules, for one engine or one test; ``kind`` is :class:`Toy` or :class:`PlainToy`."""
    return Modules(
        kind("policy", 2, trained), kind("reference", 3, trained), kind("reward", 5, trained), kind("value", 7, trained)
    )


@dataclass(frozen=True)
class Form:
    """A form of a flow.

    Attributes:
        name: in words.
        steps: the modules whose steps it calls, in order.
        make: builds the flow.
    """

    name: str
    steps: str
    make: Callable[[Modules], Flow]


Maker = Callable[[Modules], Flow]


def table() -> tuple[list[Form], Callable[[str, str], Callable[[Maker], Maker]]]:
    """A table of forms, and the decorator that adds to it."""
    forms: list[Form] = []

    def form(name, steps):
        def add(make):
            forms.append(Form(name, steps, make))
            return make

        return add

    return forms, form
