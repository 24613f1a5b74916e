"""Kinds of values, told apart so that a type checker follows: after ``isinstance(value, list)`` it knows nothing of
the entries and complains of each, after ``is_list(value)`` they are ``Any``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

kind_of: Callable[[object], type[Any]] = type
"""``type(value)``, at the same cost."""


def is_instance(value: object, kind: type | tuple[type, ...]) -> bool:
    """``isinstance`` of which a type checker draws no conclusions: for what a signature promises and a caller may
    break, and for kinds of which it would know the name only.
    """
    return isinstance(value, kind)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether the value is a mapping; of what, is not known."""
    return isinstance(value, Mapping)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether the value is a dict; of what, is not known."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether the value is a list; of what, is not known."""
    return isinstance(value, list)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether the value is a list or a tuple; of what, is not known."""
    return isinstance(value, list | tuple)


def is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether the value may name a file."""
    return isinstance(value, str | os.PathLike)
