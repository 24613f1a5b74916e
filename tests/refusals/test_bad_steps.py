"""Variants of steps that return or change what they may not. Every kind once: ``tests/bad_inputs.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import toys
from bad_input_areas.program import Echo, engine_of
from refusal_cases import fails

from chatlearn import Engine, Environment, StepError


def _returning(value: Any) -> Engine:
    class Returning(Echo):
        def forward_step(self, data: dict[str, Any]) -> Any:
            return value(data) if callable(value) else value

    return engine_of(Echo("first"), Returning("second"), Echo("third"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2], ["returns list", "returns a dict"]),
        ({"ok": torch.zeros(8), "text": ["a"] * 7}, ["'text' has 7 rows where 8 are expected"]),
        ({"deep": {"x": np.zeros(9)}}, ["'deep.x' has 9 rows where 8 are expected"]),
        ({"loss": 0.5}, ["'loss' is float without rows", "self.log('loss', …)"]),
        ({"text": "one string"}, ["'text' is str without rows"]),
    ],
)
def test_what_a_step_may_not_return(value: Any, words: list[str]) -> None:
    fails(_returning(value), StepError, "second[0].forward_step", "episode 1", "batch 0", *words)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["x"].add_(1),
        lambda data: data["x"].__setitem__(0, 5.0),
        lambda data: data["nested"]["x"].zero_(),
    ],
)
def test_inputs_changed_in_place(change: Callable[[dict[str, Any]], Any]) -> None:
    class Making(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            rows = len(data["prompt"])
            return {"x": torch.ones(rows), "nested": {"x": torch.ones(rows)}, "array": np.ones(rows)}

    class Changing(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            change(data)
            return data

    class Allowed(Changing):
        mutates_inputs = True

    words = ("second[0].forward_step changes its input", "x'", "in place", "episode 1", ".clone()", "mutates_inputs")
    fails(engine_of(Making("first"), Changing("second")), StepError, *words)
    engine_of(Making("first"), Allowed("second")).learn()


def test_a_steps_own_dict_and_lists_may_be_changed() -> None:
    class Changing(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            data["prompt"].append("more")
            data.clear()
            return {"x": torch.zeros(len(self.batch))}

    class Reading(Echo):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            toys.EVENTS.append(("read", len(data["prompt"]), "more" in data["prompt"]))
            return data

    one, two = Changing("one"), Reading("two")

    def flow(batch: Any) -> Any:
        one.forward_step(batch)
        return two.forward_step(batch)

    Engine(Environment(flow)).set_dataset([1, 2, 3]).learn()
    assert set(toys.events("read")) == {("read", 8, False), ("read", 4, False)}
