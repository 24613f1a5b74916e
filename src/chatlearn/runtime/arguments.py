"""What a replica's constructor is given: copies, so that no replica reaches another, or the driver."""

from __future__ import annotations

import copy
from typing import Any

from chatlearn.errors import ModuleError
from chatlearn.modules.base import Description


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
