"""The table of bad inputs: all areas with all their causes, and what running one of them gives.

The entries stand in ``bad_input_areas``. ``tests/test_bad_inputs.py`` holds each message against the words of its
entry, and ``docs/error-messages.md`` is made of the same messages.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import toys
from bad_input_areas import (
    configuration,
    data,
    flows,
    groups,
    life_cycle,
    lora,
    modules,
    placement,
    prompts,
    rewards,
    steps,
    yaml_files,
)
from bad_input_areas.cause import Cause
from bad_input_areas.program import begin

import chatlearn
from chatlearn.config import active


@dataclass(frozen=True)
class Area:
    """Causes of one kind.

    Attributes:
        title: for the documentation.
        minimum: how many causes there have to be.
        causes: in the order of the documentation.
        begins: a small configuration is in force before a cause acts.
        starts_nothing: no module is set up and no run folder made before the error.
    """

    title: str
    minimum: int
    causes: Sequence[Cause]
    begins: bool = True
    starts_nothing: bool = False


AREAS = (
    Area(
        "Configuration",
        35,
        [*yaml_files.CAUSES, *configuration.CAUSES, *placement.CAUSES, *lora.BEFORE],
        begins=False,
        starts_nothing=True,
    ),
    Area("Flows", 15, flows.CAUSES, starts_nothing=True),
    Area("Modules and steps", 20, [*modules.CAUSES, *steps.CAUSES, *lora.AT_SETUP]),
    Area("Data", 20, [*prompts.CAUSES, *data.CAUSES]),
    Area("Rewards", 20, rewards.CAUSES),
    Area("Groups and objectives", 10, groups.CAUSES),
    Area("Life cycle of an engine", 10, life_cycle.CAUSES),
)
"""In the order of the documentation."""


@dataclass(frozen=True)
class Outcome:
    """What running a cause gave.

    Attributes:
        error: that was raised.
        message: its text as the documentation shows it.
        started: modules that were set up, and run folders that were made.
    """

    error: BaseException | None
    message: str
    started: tuple[str, ...]


def run(area: Area, cause: Cause, folder: Path) -> Outcome:
    """Does what the cause says in an empty folder."""
    error: BaseException | None = None
    with _fresh_process(folder):
        if area.begins:
            begin()
        try:
            cause.act()
        except Exception as raised:
            error = raised
    started = [name for name, *_ in toys.EVENTS if name.endswith(".setup")]
    started += [str(path.relative_to(folder)) for path in folder.glob("runs*/*")]
    return Outcome(error, _readable(str(error), cause.act, folder), tuple(started))


@contextlib.contextmanager
def _fresh_process(folder: Path) -> Iterator[None]:
    """What a program finds when it starts: no configuration, no words, a current folder. It leaves no trace."""
    toys.EVENTS.clear()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(active, "_active", type(active._active)())
        patch.setattr(sys, "argv", ["train.py"])
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(toys.quick_runs())
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _readable(text: str, act: Callable[[], Any], folder: Path) -> str:
    """A message without folders; lines of the table count from the first one of the user's program."""
    code = act.__code__
    first = min((line for *_, line in code.co_lines() if line and line > code.co_firstlineno), default=1)
    text = re.sub(rf"{re.escape(code.co_filename)}:(\d+)", lambda place: f"train.py:{int(place[1]) - first + 1}", text)
    return text.replace(f"{folder}/", "").replace(f"{Path(chatlearn.__file__).parents[1]}/", "")
