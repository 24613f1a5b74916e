"""What a replica's constructor is given: copies, so that no replica reaches another, or the driver."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from chatlearn.errors import ModuleError
from chatlearn.modules.base import Description
from chatlearn.runtime.wire import obstacle


def copied_arguments(description: Description) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The constructor's arguments, as a replica's own.

    Raises:
        ModuleError: one can't be copied.
    """
    try:
        return copy.deepcopy((description.args, description.kwargs))
    except Exception as error:
        given = {**{f"argument {i}": value for i, value in enumerate(description.args, 1)}, **description.kwargs}
        culprit = next((f"{name} ({type(value).__name__})" for name, value in given.items() if not _copies(value)), "")
        raise ModuleError(
            f"{description.name}: each replica constructs {description.module_class.__name__}(…) anew, from copies of "
            f"the arguments, but {culprit or 'they'} can't be copied ({error}). Make it in setup(), from arguments "
            f"that are plain values."
        ) from error


def _copies(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except (TypeError, ValueError, RuntimeError, AttributeError, OSError):
        return False
    return True


def unsendable(description: Description) -> str | None:
    """Why a worker in another process can't be given a module's class, or its constructor's arguments: what it is, and
    what to do. ``None`` if it can.
    """
    kind = description.module_class
    if (found := obstacle(kind)) is not None:
        return (
            f"models.{description.name}: the class {kind.__qualname__} can't be sent to a worker, which it has to be "
            f"since no worker can import it, for `{kind.__qualname__}{found.path}` ({found.kind}) can't "
            f"({found.why}): make that in setup(), or define the class in a file of its own and import it."
        )
    for name, value in _named_arguments(description).items():
        if (found := obstacle(value)) is not None:
            return (
                f"models.{description.name}: argument `{name}{found.path}` ({found.kind}) of {kind.__qualname__}(…) "
                f"can't be sent to a worker ({found.why}): make it in setup(), from arguments that are plain values."
            )
    return None


def _named_arguments(description: Description) -> dict[str, Any]:
    """The constructor's arguments, by the names of its parameters where these have one."""
    names = [
        parameter.name
        for parameter in inspect.signature(description.module_class.__init__).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ][1:]
    unnamed = (f"args[{i}]" for i in range(len(description.args)))
    return {**dict(zip([*names, *unnamed], description.args, strict=False)), **description.kwargs}
