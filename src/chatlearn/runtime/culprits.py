"""Which part of a value is why it can't be sent, and by which path it is reached."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np

from chatlearn.guards import is_instance, is_mapping, is_sequence, kind_of
from chatlearn.runtime.objects import import_path

_MAX_PATH = 200
"""Characters of a path that are shown."""

Failure = Callable[[Any], Exception | None]
"""Why a value can't be sent; ``None`` if it can."""

Steps = Iterator[tuple[str, Any]]
"""Parts of a value, each with the end of the path that leads to it."""


class Culprit(NamedTuple):
    """A part that can't be sent, though all of its own parts can.

    Attributes:
        path: from the value to it, much as Python code would reach it: ``['notes'][3].handle``; empty for the value
            itself.
        kind: name of its type.
        why: what is raised when it is sent.
    """

    path: str
    kind: str
    why: str


def culprit_of(value: Any, error: Exception, failure: Failure) -> Culprit:
    """The first part, in depth, of a value that can't be sent because of ``error``."""
    path, passed = "", [value]
    while True:
        for step, part in _parts(value):
            if not any(part is other for other in passed) and (reason := failure(part)) is not None:
                path, value, error = path + step, part, reason
                passed.append(part)
                break
        else:
            shown = path if len(path) <= _MAX_PATH else f"{path[: _MAX_PATH // 2]}…{path[-_MAX_PATH // 2 :]}"
            return Culprit(shown, _name(kind_of(value)), str(error).rstrip(".") or type(error).__name__)


def caught(function: Callable[..., Any], *args: Any) -> Exception | None:
    """What a function raises; ``None`` if it returns."""
    try:
        function(*args)
    except BaseException as error:
        if not isinstance(error, Exception):
            raise
        return error
    return None


def _name(kind: type[Any]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _parts(value: Any) -> Steps:
    kind = kind_of(value)
    if kind is dict:
        return _items(value)
    if is_sequence(value):
        return _entries(value)
    if is_instance(value, (set, frozenset)):
        return (("{…}", part) for part in value)
    for known, parts in _KNOWN.items():
        if is_instance(value, known):
            return parts(value)
    return _object(value)


def _items(values: dict[Any, Any]) -> Steps:
    yield from ((f"[{key!r}]", part) for key, part in values.items())
    yield from ((f".keys()[{i}]", key) for i, key in enumerate(values))


def _entries(values: Iterable[Any]) -> Steps:
    return ((f"[{i}]", part) for i, part in enumerate(values))


def _array(values: np.ndarray[Any, Any]) -> Steps:
    if values.dtype.hasobject:
        yield from ((f"[{', '.join(map(str, place))}]", part) for place, part in np.ndenumerate(values))


def _function(value: FunctionType) -> Steps:
    """What goes along with a function that can't be imported."""
    if _is_imported(value):
        return
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        if caught(getattr, cell, "cell_contents") is None:  # it may be empty yet
            yield f".__closure__[{name!r}]", cell.cell_contents
    for name in _names(value.__code__):
        if name in value.__globals__:
            yield f".__globals__[{name!r}]", value.__globals__[name]
    yield from ((f".__defaults__[{i}]", part) for i, part in enumerate(value.__defaults__ or ()))
    yield from ((f".__kwdefaults__[{key!r}]", part) for key, part in (value.__kwdefaults__ or {}).items())
    yield from ((f".{name}", part) for name, part in vars(value).items())


def _names(code: CodeType) -> list[str]:
    """Names that code, and code inside of it, may look up among the globals."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _class(value: type[Any]) -> Steps:
    """What goes along with a class that can't be imported."""
    if not _is_imported(value):
        yield from ((f".{name}", part) for name, part in vars(value).items() if name not in ("__dict__", "__weakref__"))
        yield from ((f".__bases__[{i}]", part) for i, part in enumerate(value.__bases__))


def _is_imported(value: Any) -> bool:
    path = import_path(value)
    return path is not None and not path.startswith("__main__:")


def _partial(value: functools.partial[Any]) -> Steps:
    yield ".func", value.func
    yield from ((f".args[{i}]", part) for i, part in enumerate(value.args))
    yield from ((f".keywords[{key!r}]", part) for key, part in value.keywords.items())


def _attributes(*names: str) -> Callable[[Any], Steps]:
    return lambda value: ((f".{name}", getattr(value, name)) for name in names)


_KNOWN: dict[type[Any], Callable[[Any], Steps]] = {
    FunctionType: _function,
    type: _class,
    MethodType: _attributes("__self__", "__func__"),
    staticmethod: _attributes("__func__"),
    classmethod: _attributes("__func__"),
    property: _attributes("fget", "fset", "fdel"),
    functools.partial: _partial,
    np.ndarray: _array,
}
"""Type -> the parts of its instances, where their own word of how to pickle them does not say."""


def _object(value: Any) -> Steps:
    """The parts of any other object: what it says that there is to pickle."""
    found: list[Any] = []
    if caught(lambda: found.append(value.__reduce_ex__(4))) is not None or not is_sequence(found[0]):
        return
    reduced: tuple[Any, ...] = (*found[0], None, None, None)
    _, args, state, entries, items = reduced[:5]
    for part in state if _has_slots(state) else (state,):
        if is_mapping(part):
            yield from ((f".{name}", attribute) for name, attribute in part.items())
        elif part is not None:
            yield ".__getstate__()", part
    yield from _entries(entries or ())
    yield from ((f"[{key!r}]", part) for key, part in items or ())
    yield ".__class__", kind_of(value)
    yield from ((f".__reduce__()[1][{i}]", part) for i, part in enumerate(args) if part is not kind_of(value))


def _has_slots(state: Any) -> bool:
    """Whether a state is a pair: the attributes in ``__dict__``, and those in slots."""
    return kind_of(state) is tuple and len(state) == 2 and all(part is None or is_mapping(part) for part in state)
