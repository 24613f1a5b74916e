"""Where metrics go: one row per episode, to as many sinks as a run asks for.

A sink is a class of :data:`SINKS`, or any class given by its import path (``my_package.sinks:MySink``). It is
constructed with a :class:`~chatlearn.observe.sinks.base.SinkContext` and fulfils
:class:`~chatlearn.observe.sinks.base.Sink`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from chatlearn.errors import ConfigError
from chatlearn.observe.sinks.base import Sink, SinkContext

__all__ = ["PACKAGES", "SINKS", "Sink", "SinkContext", "check_sinks", "open_sinks"]

SINKS = {
    "jsonl": "chatlearn.observe.sinks.jsonl:JsonlSink",
    "tensorboard": "chatlearn.observe.sinks.tensorboard:TensorBoardSink",
    "wandb": "chatlearn.observe.sinks.wandb:WandbSink",
    "mlflow": "chatlearn.observe.sinks.mlflow:MlflowSink",
    "trackio": "chatlearn.observe.sinks.trackio:TrackioSink",
}
"""Name of a sink -> import path of its class."""

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}
"""Packages that a sink needs; the extra of the same name brings them."""


def check_sinks(names: Iterable[str]) -> list[str]:
    """What is wrong with the names of sinks, one sentence each; imports none of their packages."""
    return [problem for name in names if (problem := _problem(name))]


def open_sinks(
    folder: Path,
    first_episode: int,
    names: Sequence[str] | None = None,
    *,
    exp_name: str = "",
    config: Mapping[str, Any] | None = None,
) -> list[Sink]:
    """Opens the sinks of a run.

    Args:
        folder: of the run.
        first_episode: the first that will be written, from 1. More than 1 means a resume: what a sink has of this
            episode and later ones is replaced, or stays where a service can't forget (those rows are the same).
        names: keys of :data:`SINKS` or import paths. ``jsonl`` is always there. ``None`` adds TensorBoard where it is
            installed.
        exp_name: of the run; the folder's name by default.
        config: the resolved configuration as plain data, for sinks that show it.

    Raises:
        ConfigError: a sink is unknown, its package is missing, or its service can't be reached.
    """
    chosen = _installed_defaults() if names is None else names
    if problems := check_sinks(chosen):
        raise ConfigError("\n".join(problems))
    context = SinkContext(folder, first_episode, exp_name or folder.name, config or {})
    sinks: list[Sink] = []
    try:
        for name in dict.fromkeys(["jsonl", *chosen]):
            sinks.append(_class_of(name)(context))
    except BaseException:
        for sink in sinks:
            sink.close("failed")
        raise
    return sinks


def _installed_defaults() -> list[str]:
    return [] if _missing("tensorboard") else ["tensorboard"]


def _problem(name: str) -> str:
    if ":" in name:
        return _problem_of_path(name)
    if name not in SINKS:
        near = get_close_matches(name, SINKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return (
            f"There is no sink {name!r}{hint} Sinks: {', '.join(SINKS)}, or the import path of a class of your own "
            "(my_package.my_module:MySink)."
        )
    if missing := _missing(name):
        return f"The sink {name} needs {', '.join(missing)}, not installed here: pip install 'chatlearn[{name}]'"
    return ""


def _problem_of_path(path: str) -> str:
    module = path.partition(":")[0]
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    return "" if found else f"The sink {path!r}: there is no module {module!r} on the search path of Python."


def _missing(name: str) -> list[str]:
    return [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]


def _class_of(name: str) -> Any:
    module, _, attribute = SINKS.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise ConfigError(f"The sink {name!r}: the module {module} has no class {attribute!r}.") from None
