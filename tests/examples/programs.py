"""The programs in examples/, run in this process with models that write down what they do."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from watching import Room, Watch

import chatlearn

EXAMPLES = Path(__file__).parents[2] / "examples"

PROGRAMS = {
    "main": ("rlhf", "rlhf.yaml"),
    "custom_engine": ("custom_flow", "custom_engine.yaml"),
    "with_evaluator": ("custom_flow", "custom_engine.yaml"),
    "direct_engine": ("custom_flow", "direct_engine.yaml"),
}
"""Name of the program -> its folder and its configuration."""

INFERENCE = {
    "main": ("policy", "reference", "value", "reward"),
    "custom_engine": ("reference",),
    "with_evaluator": ("reference",),
    "direct_engine": ("policy", "reference", "value", "reward"),
}
"""Name of the program -> its models that are not trained."""


@dataclass(frozen=True)
class Finished:
    """A program that has run to its end.

    Attributes:
        calls: of the trainers, see ``recording_models.Call``.
        replicas: of all models, as they were at the end.
        path: the run's folder.
    """

    calls: list[Any]
    replicas: list[Any]
    path: Path


def run_program(folder: Path, name: str, *overrides: str, room: Room | None = None) -> Finished:
    """Runs a program in a copy of its folder under ``folder``, with ``overrides`` on its command line."""
    example, config = PROGRAMS[name]
    place = folder / name
    if not place.exists():
        shutil.copytree(EXAMPLES / example, place, ignore=shutil.ignore_patterns("runs", "__pycache__"))
        (place / "models.py").rename(place / "example_models.py")
        shutil.copyfile(Path(__file__).with_name("recording_models.py"), place / "models.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "room", room or Room())
        patch.chdir(place)
        patch.syspath_prepend(place)
        patch.setattr(sys, "argv", [f"{name}.py", "-c", config, *overrides])
        forget_example_modules()
        try:
            engine: chatlearn.Engine = runpy.run_path(f"{name}.py", run_name="__main__")["engine"]
            engine.stop()
            models = sys.modules["models"]
            return Finished(models.CALLS, models.REPLICAS, place / engine.run.path)
        finally:
            forget_example_modules()


def forget_example_modules() -> None:
    """The next program imports its models anew."""
    for name in ("models", "example_models"):
        sys.modules.pop(name, None)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
