"""Which module of a checkpoint is written, and what it is made from."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.identity import Line
from chatlearn.config.schema import Config
from chatlearn.errors import CheckpointError, ModuleError
from chatlearn.guards import is_instance
from chatlearn.modules.base import BaseModule, Description, describe

_PROGRAM = (
    "Give the program that trained it with --program train.py, or let the run itself write the folder at its end "
    "(runtime.export)"
)


def chosen(lines: Mapping[str, Line], config: Config, asked: str | None, checkpoint: Path) -> str:
    """The name of the module to write.

    Weights that come by parameter sync are not kept in a checkpoint; those of the module that they come from are.

    Args:
        lines: classes of the modules whose state the checkpoint holds, by name.
        config: of the run; what stands in ``runtime.export`` comes first.
        asked: what the user wants; ``None``: the first of ``runtime.export`` that is there (``policy`` before others,
            as at the end of a run), else the only one whose class has ``export``.
        checkpoint: for errors.

    Raises:
        CheckpointError: it holds no such module, or none, or several that could be meant.
    """
    shown = ", ".join(f"{name} ({line.name})" for name, line in lines.items()) or "none"
    if asked is not None:
        if asked not in lines:
            raise CheckpointError(
                f"{checkpoint} holds no state of a module {asked!r}: its weights come by parameter sync, are those of "
                f"the model that it loads, or there is no such module. Modules in it: {shown}. Name the one that "
                f"{asked!r} follows with --module."
            )
        return asked
    wanted = [name for name in config.runtime.export if name in lines]
    if wanted:
        return "policy" if "policy" in wanted else wanted[0]
    able = [name for name, line in lines.items() if _may_export(line.name)]
    if len(able) == 1:
        return able[0]
    if not able:
        raise CheckpointError(
            f"{checkpoint}: no module in it has a method export(path), so there is nothing to write. Modules in it: "
            f"{shown}."
        )
    raise CheckpointError(
        f"{checkpoint} holds several modules that could be written: {', '.join(able)}. Say which with --module."
    )


def described(name: str, line: Line, program: Mapping[str, BaseModule] | None) -> Description:
    """What a module is constructed from.

    Args:
        name: of the module.
        line: its class in the checkpoint.
        program: modules of the program that trained it, by name; ``None`` makes it from its class and its name alone.

    Raises:
        ModuleError: the class can't be imported or is none of a module, its constructor takes more than the name, it
            has no ``export``, or the program has another class under this name.
    """
    description = _from_class(name, line.name) if program is None else _from_program(name, line, program)
    if not callable(getattr(description.module_class, "export", None)):
        raise ModuleError(
            f"{name}: {Line.of_class(description.module_class).name} has no method export(path), so it can't be "
            f"written. Choose another module with --module."
        )
    return description


def left_out(description: Description) -> list[str]:
    """Names of the constructor's parameters that had to be left at their defaults."""
    signature = inspect.signature(description.module_class.__init__)
    bound = signature.bind(None, *description.args, **description.kwargs)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, p in signature.parameters.items() if name not in bound.arguments and p.kind not in kinds]


def _from_program(name: str, line: Line, program: Mapping[str, BaseModule]) -> Description:
    if name not in program:
        raise ModuleError(f"The program has no module {name!r} in its flows; it has {', '.join(program) or 'none'}.")
    description = describe(program[name])
    found = Line.of_class(description.module_class)
    if line.of(found) != found.name:
        raise ModuleError(
            f"{name} has the class {found.name} in the program, and had {line.name} in the run that was saved. Give "
            f"the program that wrote the checkpoint."
        )
    return description


def _from_class(name: str, kind: str) -> Description:
    found = _imported(name, kind)
    parameters = inspect.signature(found.__init__).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters.values())
    arguments = (name,) if takes_any and "name" not in parameters else ()
    keywords = {"name": name} if "name" in parameters else {}
    missing = _missing(parameters.values(), set(keywords), takes_any)
    if missing:
        raise ModuleError(
            f"{name}: {kind} is constructed with {', '.join(missing)} beside its name, which a checkpoint does not "
            f"hold. {_PROGRAM}."
        )
    return Description(found, arguments, keywords, name)


def _missing(parameters: Any, given: set[str], takes_any: bool) -> list[str]:
    """Names of the parameters after ``self`` that need a value."""
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    open_ones = [each.name for each in list(parameters)[1:] if each.kind in plain and each.default is each.empty]
    open_ones = [parameter for parameter in open_ones if parameter not in given]
    return open_ones[1:] if takes_any and "name" not in given else open_ones


def _imported(name: str, kind: str) -> type[BaseModule]:
    path, _, qualname = kind.partition(":")
    if path == "__main__" or "<locals>" in qualname:
        where = "in a program" if path == "__main__" else "inside of a function"
        raise ModuleError(f"{name}: its class {qualname} is defined {where}, so it can't be imported. {_PROGRAM}.")
    try:
        found: Any = importlib.import_module(path)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModuleError(
            f"{name}: its class {kind} can't be imported here ({error}). Put its file on PYTHONPATH, or install its "
            f"package. {_PROGRAM}."
        ) from None
    if not is_instance(found, type) or not issubclass(found, BaseModule):
        raise ModuleError(f"{name}: {kind} is no class of a module; the checkpoint is damaged or foreign.")
    return found


def _may_export(kind: str) -> bool:
    """Whether a class has ``export``, as far as it can be imported."""
    try:
        return callable(getattr(_imported("", kind), "export", None))
    except ModuleError:
        return True
