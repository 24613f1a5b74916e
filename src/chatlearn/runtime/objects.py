"""Functions and classes by import path, and dataclasses as class and attributes, without a call of a constructor."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from types import MemberDescriptorType
from typing import Any, NamedTuple, TypeAlias

from chatlearn.errors import DataError
from chatlearn.guards import is_instance, kind_of

Names: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Of the attributes in an instance's ``__dict__``, and of those in its slots."""

_HEAP_TYPE = 1 << 9
"""Flag of types that are made at run time; the others, such as ``dict``, keep content outside of attributes."""

_STATE_METHODS = ("__getstate__", "__setstate__")
"""Methods that :mod:`dataclasses` gives to some classes; those of ``object`` are of no module."""

_MAX_KNOWN = 1024
"""Classes, and sets of attributes of one class, that are remembered before all are forgotten."""


class Parts:
    """How the instances of a plain dataclass come apart."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._module, self._name = kind.__module__, kind.__qualname__
        slots = {name for base in kind.__mro__ for name, part in vars(base).items() if _is_slot(part)}
        self._slots = tuple(sorted(slots))
        self._values: Callable[[Any], tuple[Any, ...]] | None = _getter(self._slots) if slots else None
        self._has_dict = bool(kind.__dictoffset__)
        self._layouts: dict[tuple[Names, bool], str | None] = {}

    def is_found(self, main: bool) -> bool:
        """Whether the class can be imported; one of ``__main__`` only with ``main``."""
        if self._module == "__main__" and not main:
            return False
        found = getattr(sys.modules.get(self._module), self._name, None)
        return found is self._kind or ("." in self._name and import_path(self._kind) is not None)

    def state(self, value: Any) -> tuple[Names, Iterable[Any]]:
        """Names and values of the attributes that an instance has."""
        if self._values is None:
            attributes = value.__dict__
            return (tuple(attributes), ()), attributes.values()
        slots = self._slots
        try:
            values = self._values(value)
        except AttributeError:
            slots = tuple([name for name in slots if hasattr(value, name)])
            values = tuple([getattr(value, name) for name in slots])
        attributes: dict[str, Any] = value.__dict__ if self._has_dict else {}
        return (tuple(attributes), slots), (*attributes.values(), *values)

    def layout(self, names: Names, named: bool) -> str | None:
        """Names, and the class's path where it is ``named``, as a text for :func:`layout_of`; ``None`` where no text
        can say them.
        """
        layout = self._layouts.get((names, named), "")
        if layout == "":
            path = f"{self._module}:{self._name}" if named else ""
            speakable = all(is_instance(name, str) and name.isidentifier() for part in names for name in part)
            layout = "|".join([path, *map(" ".join, names)]) if speakable else None
            _remember(self._layouts, (names, named), layout)
        return layout


class Layout(NamedTuple):
    """A dataclass's path (if it has one) and the names of an instance's attributes."""

    module: str
    name: str
    attributes: tuple[str, ...]
    slots: tuple[str, ...]


@lru_cache(maxsize=4 * _MAX_KNOWN)
def layout_of(text: str) -> Layout:
    """What :meth:`Parts.layout` wrote."""
    path, attributes, slots = text.rsplit("|", 2)
    module, _, name = path.partition(":")
    return Layout(module, name, tuple(attributes.split()), tuple(slots.split()))


_PARTS: dict[type[Any], Parts | None] = {}
_UNKNOWN: Any = object()


def parts_of(kind: type[Any]) -> Parts | None:
    """How the instances of a class come apart; ``None`` unless it is a plain dataclass."""
    parts = _PARTS.get(kind, _UNKNOWN)
    if parts is _UNKNOWN:
        parts = Parts(kind) if _is_plain_dataclass(kind) else None
        _remember(_PARTS, kind, parts)
    return parts


def instance_of(kind: type[Any], layout: Layout, values: Sequence[Any]) -> Any:
    """An instance with the given attributes, and without a call of its constructor."""
    instance = object.__new__(kind)
    if layout.attributes:
        attributes = zip(layout.attributes, values, strict=False)  # those of the slots follow
        if hasattr(instance, "__dict__"):
            instance.__dict__.update(attributes)
        else:  # the sender's copy of a script's class has none of its slots
            for name, value in attributes:
                object.__setattr__(instance, name, value)
    if layout.slots:
        for name, value in zip(layout.slots, values[len(layout.attributes) :], strict=True):
            object.__setattr__(instance, name, value)
    return instance


def import_path(value: Any) -> str | None:
    """``module:qualname`` of a function or class that is found there in this process; ``None`` for all else."""
    module, name = module_of(value), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    try:
        return f"{module}:{name}" if _found(module, name) is value else None
    except (ImportError, AttributeError):
        return None


def located(module: str, name: str) -> Any:
    """What an import path names.

    Raises:
        DataError: it is not here.
    """
    try:
        return _found(module, name)
    except Exception as error:
        raise DataError(
            f"{module}:{name} can't be imported here ({sys.executable}): {type(error).__name__}: {error}. Install here "
            f"what it belongs to, or put its folder on PYTHONPATH."
        ) from error


def module_of(value: Any) -> Any:
    """``__module__``, if there is one."""
    return getattr(value, "__module__", None)


def _found(module: str, name: str) -> Any:
    if "." not in name and (found := getattr(sys.modules.get(module), name, None)) is not None:
        return found
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _is_plain_dataclass(kind: type[Any]) -> bool:
    """Whether all there is to an instance are its attributes; one with a say in its own pickling is pickled."""
    return (
        dataclasses.is_dataclass(kind)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__getnewargs__")
        and not hasattr(kind, "__getnewargs_ex__")
        and all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
        and all(module_of(getattr(kind, name, None)) in (None, "dataclasses") for name in _STATE_METHODS)
    )


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Other threads may do the same meanwhile."""
    if len(known) >= _MAX_KNOWN:
        known.clear()
    known[key] = value


def _is_slot(value: Any) -> bool:
    return kind_of(value) is MemberDescriptorType


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda value: (get(value),)
