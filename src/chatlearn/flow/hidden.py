"""Modules and stand-ins that hide inside of arguments, where neither tracing nor a worker looks for them.

A module arrives as a client where it is an argument, or in plain lists, tuples and dicts of one. Anywhere else (its
bound method, a ``functools.partial``, a set, a dataclass, a function that refers to it) a step would call the driver's
own object, which no ``setup`` has prepared and no configuration has reached.
"""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import lru_cache, partial
from types import CodeType, FunctionType, MappingProxyType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, cast

from chatlearn.errors import ModuleError
from chatlearn.flow.clients import is_module
from chatlearn.flow.symbols import Poisoned, Symbol, caller_place
from chatlearn.guards import is_instance

_LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes, range, slice, type, ModuleType})
"""Types of values that hold nothing; most parts of most arguments are of these."""


def find_hidden(value: object, *, clients: bool) -> object | None:
    """The first stand-in, method of a module, or module that is no client, inside of an argument.

    Looked into are dicts (with their keys), lists, tuples, sets, partials, dataclasses, functions (what they enclose,
    their defaults, and modules that they name), and the attributes of other objects, one level deep.

    Args:
        value: the argument.
        clients: whether modules in plain lists, tuples and values of dicts are clients, as in a flow.
    """
    parts: list[tuple[object, bool, bool]] = [(value, clients, True)]
    seen: dict[tuple[int, bool, bool], object] = {}
    while parts:
        part, clients, deep = parts.pop()
        if isinstance(part, (Symbol, Poisoned)) or (not clients and is_module(part)):
            return part
        if isinstance(part, MethodType) and is_module(part.__self__):
            return part
        key = (id(part), clients, deep)
        if key not in seen and not is_module(part):
            seen[key] = part
            inner = [entry for entry in _inside(part, clients, deep) if type(entry[0]) not in _LEAVES]
            parts += reversed(inner)
    return None


def hidden_module(value: object, found: object) -> str:
    """Words for the module, or method of one, that :func:`find_hidden` has found in ``value``."""
    module: Any = found.__self__ if isinstance(found, MethodType) else found
    what = f"the module {module.name!r}"
    if isinstance(found, MethodType):
        what = f"{module.name}.{found.__name__}, a method of {what}"
    return what if found is value else f"a {type(value).__name__} that holds {what}"


def check_constructor(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Modules are no arguments of constructors, since each replica constructs its own instance from them.

    Raises:
        ModuleError: there is a module in one, or a method of one, or a stand-in of a flow.
    """
    for value in (*args, *kwargs.values()):
        if type(value) in _LEAVES or (found := find_hidden(value, clients=False)) is None:
            continue
        where = f"{caller_place()}: the constructor of {cls.__name__} is given"
        if isinstance(found, (Symbol, Poisoned)):
            raise ModuleError(
                f"{where} {found.chatlearn_origin}, which holds no data while a flow is traced. Make modules outside "
                f"of the flow, and pass the batch to a step."
            )
        raise ModuleError(
            f"{where} {hidden_module(value, found)}. Each replica would get a copy without setup and settings. Pass "
            f"the module in the flow, as a constant of the call (`agent.forward_step(batch, judge=judge)`); inside "
            f"the step call its steps."
        )


def _inside(value: object, clients: bool, deep: bool) -> Iterator[tuple[object, bool, bool]]:
    """What a value holds, as (part, whether a module there is a client, whether to look into objects there)."""
    if isinstance(value, (dict, MappingProxyType)):
        items = cast("dict[object, object]", value)
        clients = clients and type(items) is dict
        yield from ((key, False, deep) for key in items)
        yield from ((part, clients, deep) for part in items.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        clients = clients and type(cast("object", value)) in (list, tuple)
        yield from ((part, clients, deep) for part in cast("Iterable[object]", value))
    elif isinstance(value, partial):
        call = cast("partial[object]", value)
        yield from ((part, False, deep) for part in (call.func, *call.args, *call.keywords.values()))
    elif isinstance(value, MethodType):
        yield value.__func__, False, False
    elif isinstance(value, FunctionType):
        yield from ((part, False, False) for part in _referred(value))
    elif deep and not isinstance(value, (type, ModuleType)):
        yield from ((part, False, is_dataclass(value)) for part in _attributes(value))


def _attributes(value: object) -> Iterator[object]:
    yield from list(getattr(value, "__dict__", {}).values())
    for slot in _slots(type(value)):
        try:
            yield slot.__get__(value)
        except AttributeError:
            continue  # never set


@lru_cache(maxsize=256)
def _slots(cls: type) -> tuple[MemberDescriptorType, ...]:
    return tuple(part for c in cls.__mro__ for part in vars(c).values() if is_instance(part, MemberDescriptorType))


def _referred(function: FunctionType) -> Iterator[object]:
    """What a function keeps for its calls. Of the globals that it reads, only modules: others belong to the program."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # assigned later
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from _global_modules(function.__code__, function.__globals__)


def _global_modules(code: CodeType, names: dict[str, Any]) -> Iterator[object]:
    if modules := [name for name in code.co_names if is_module(names.get(name))]:
        # An attribute of something else may have the same name.
        read = {part.argval for part in dis.get_instructions(code) if part.opname == "LOAD_GLOBAL"}
        yield from (names[name] for name in modules if name in read)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_modules(constant, names)
