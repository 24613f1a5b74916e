"""Where metrics go: one row per episode, to as many sinks as a run asks for.

A sink is a class of :data:`SINKS`, or any class given by its import path (``my_package.sinks:MySink``). It is
constructed with a :class:`~chatlearn.observe.sinks.base.SinkContext` and fulfils
:class:`~chatlearn.observe.sinks.base.Sink`.
"""

from __future__ import annotations

import bdb
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from chatlearn.config.registries import SINKS
from chatlearn.errors import ConfigError
from chatlearn.observe.sinks.base import Sink, SinkContext
from chatlearn.observe.sinks.guard import GuardedSink, raised_in

__all__ = ["PACKAGES", "SINKS", "GuardedSink", "Sink", "SinkContext", "check_sinks", "open_sinks"]

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}
"""Packages that a sink needs; the extra of the same name brings them."""


def check_sinks(names: Iterable[str]) -> list[str]:
    """What is wrong with sinks, a sentence or two each: names that are unknown or whose packages are missing (which are
    not imported), import paths that can't be imported or don't name the class of a sink (whose modules are).
    """
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
        ConfigError: a sink is unknown, its package is missing, its service can't be reached, or its constructor raises.
    """
    chosen = _installed_defaults() if names is None else names
    if problems := check_sinks(chosen):
        raise ConfigError("\n".join(problems))
    context = SinkContext(folder, first_episode, exp_name or folder.name, config or {})
    sinks: list[Sink] = []
    try:
        for name in dict.fromkeys(["jsonl", *chosen]):
            sinks.append(_opened(name, context))
    except BaseException:
        for sink in sinks:
            GuardedSink(sink).close("failed")
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
    """What is wrong with the import path of a class, which is imported for it."""
    module, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        return f"The sink {path!r} is no import path such as my_package.my_module:MySink."
    try:
        found = _imported(module)
    except ConfigError as error:
        return f"The sink {path!r}: {error}"
    if not hasattr(found, attribute):
        near = get_close_matches(attribute, dir(found), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"The sink {path!r}: the module {module} has no class {attribute!r}.{hint}"
    problem = _problem_of_class(getattr(found, attribute))
    return f"The sink {path!r}: {problem}" if problem else ""


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ConfigError(_why_not_imported(module, error)) from error


def _why_not_imported(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return (
            f"there is no module {module!r}. Check the spelling, and that its folder is on PYTHONPATH or its package "
            f"is installed."
        )
    importing = (
        __file__,
        importlib.__file__,
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
    )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in importing]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"importing {module} raises {type(error).__name__}{place}: {error}"


_METHODS = {"__init__": "(self, context)", "write": "(self, episode, row)", "close": "(self, status)"}


def _problem_of_class(cls: Any) -> str:
    """Why something is no class of a :class:`Sink`, by what it has and how many arguments its methods take."""
    if not isinstance(cls, type):
        return f"it is {type(cls).__name__}, not a class. Name a class with `write`, `close` and a `note`."
    for method, form in _METHODS.items():
        function = inspect.getattr_static(cls, method, None)
        if function in (None, object.__init__) and (method != "__init__" or cls.__new__ is object.__new__):
            return f"{cls.__name__} has no method `{method}`. Define {method}{form}."
        if not _takes(function, form.count(",") + 1):
            return f"{cls.__name__}.{method} can't be called as a sink's is. Define {method}{form}."
    return ""


def _takes(function: Any, count: int) -> bool:
    """Whether a function of a class takes so many arguments, ``self`` among them; of other callables it is believed."""
    if isinstance(function, staticmethod):
        function, count = function.__func__, count - 1
    if not inspect.isfunction(function):
        return True
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def _missing(name: str) -> list[str]:
    return [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]


def _opened(name: str, context: SinkContext) -> Sink:
    module, _, attribute = SINKS.get(name, name).partition(":")
    kind: Any = getattr(importlib.import_module(module), attribute)
    try:
        sink: Any = kind(context)
    except (ConfigError, bdb.BdbQuit):
        raise
    except Exception as error:
        raise ConfigError(
            f"The sink {name!r}: its constructor raises {raised_in(error)}. Mend it, or take the sink off "
            "runtime.sinks."
        ) from error
    if not isinstance(getattr(sink, "note", None), str):
        GuardedSink(sink).close("failed")
        raise ConfigError(f'The sink {name!r} has no text `note`. Set it in the class, note = "", or in __init__.')
    return sink
