"""A module, an engine and the checks of refusals and failures that the tests of bad inputs share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toys

from chatlearn import BaseModule, ChatLearnError, Engine, Environment


class Echo(BaseModule):
    """Records that it started, and gives back what it gets."""

    def setup(self) -> None:
        toys.EVENTS.append((f"{self.name}.setup",))

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return data

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        return None


def engine_of(*modules: BaseModule, prompts: Any = (1, 2, 3)) -> Engine:
    """An engine whose environment passes the batch through all modules."""

    def env_flow(batch: Any) -> Any:
        for module in modules:
            batch = module.forward_step(batch)
        return batch

    engine = Engine(Environment(env_flow))
    return engine if prompts is None else engine.set_dataset(prompts)


def refused(engine: Engine, kind: type[ChatLearnError], *words: str, folder: Path) -> None:
    """``learn()`` and ``check()`` say the same, and nothing has started: no module, no folder."""
    for attempt in (engine.check, engine.learn):
        with pytest.raises(kind) as caught:
            attempt()
        for word in words:
            assert word in str(caught.value)
    assert toys.EVENTS == []
    assert [path.name for path in folder.iterdir() if path.suffix != ".yaml"] == []


def fails(engine: Engine, kind: type[ChatLearnError], *words: str) -> ChatLearnError:
    with pytest.raises(kind) as caught:
        engine.learn()
    for word in words:
        assert word in str(caught.value)
    return caught.value


def here(function: Callable[..., Any], text: str) -> str:
    """``file:line`` of the line of a function that contains the text."""
    lines, first = inspect.getsourcelines(function)
    return f"{inspect.getsourcefile(function)}:{first + next(i for i, line in enumerate(lines) if text in line)}"
