"""Which argument of a call in a flow goes to which parameter of the step, and which of them are data."""

from __future__ import annotations

from typing import Any

from chatlearn.errors import FlowError
from chatlearn.flow.hidden import find_hidden, hidden_module
from chatlearn.flow.signature import RUN_PARAMETERS, StepSignature
from chatlearn.flow.symbols import Poisoned, Symbol, caller_place


class Merged(tuple[Symbol, ...]):
    """Batches that one parameter gets, merged into one dict (told apart from a tuple that a user passes)."""


def bind(call: str, signature: StepSignature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Parameter name -> :class:`Merged` batches or a constant, in the order of the signature.

    Raises:
        FlowError: an argument was read from a stand-in, hides a module, or does not fit the signature.
    """
    for value in (*args, *kwargs.values()):
        _check_argument(call, value)
    where = caller_place()
    arguments = _positional(where, call, signature, args)
    for name, value in kwargs.items():
        if name in arguments:
            raise FlowError(f"{where}: {call} gets {name!r} twice, by position and by name. Leave one of them out.")
        if name not in signature.named and not signature.takes_any_keyword:
            known = ", ".join(sorted(signature.named)) or "none"
            raise FlowError(f"{where}: {call} has no parameter {name!r}; it has {known}.")
        arguments[name] = Merged((value,)) if isinstance(value, Symbol) else value
    for name in (*signature.data, *signature.required):
        if name not in arguments:
            raise FlowError(f"{where}: {call} is called without its parameter {name!r}. Pass a value for it.")
    for name in RUN_PARAMETERS:
        if name in arguments:
            raise FlowError(f"{where}: {call} is given {name!r}, which chatlearn fills in itself. Leave it out.")
    first = [name for name in signature.positional if name in arguments]
    return {name: arguments[name] for name in dict.fromkeys([*first, *arguments])}


def _positional(where: str, call: str, signature: StepSignature, args: tuple[Any, ...]) -> dict[str, Any]:
    if signature.merges:
        merged = [value for value in args if isinstance(value, Symbol)]
        if any(isinstance(value, Symbol) for value in args[len(merged) :]):
            raise FlowError(
                f"{where}: {call} gets a plain value before a batch; pass batches first, the rest by keyword."
            )
        positional = [Merged(merged), *args[len(merged) :]] if merged else list(args)
        names = signature.positional
    else:
        positional = [Merged((value,)) if isinstance(value, Symbol) else value for value in args]
        extra = len(args) - len(signature.positional)
        names = signature.positional + tuple(f"*{i}" for i in range(extra) if signature.variadic)
    if len(positional) > len(names):
        wants = ", ".join(signature.data) or "no data"
        raise FlowError(
            f"{where}: {call} takes {wants}, but gets {len(args)} positional arguments. Merge or drop some; a "
            f"parameter that is no data has a default or comes after `*`, and is given by keyword."
        )
    return dict(zip(names, positional, strict=False))


def _check_argument(call: str, value: Any) -> None:
    """Raises FlowError for what is neither a batch nor a constant."""
    if isinstance(value, Symbol):
        return
    found = find_hidden(value, clients=True)
    if isinstance(found, Poisoned):
        raise FlowError(
            f"{caller_place()}: {call} is given {found.chatlearn_read_at}, which holds no data while a "
            f"flow is traced. Pass the whole batch, and read from it inside the step."
        )
    if isinstance(found, Symbol):
        raise FlowError(
            f"{caller_place()}: {call} is given a {type(value).__name__} that contains {found.chatlearn_origin}. Pass "
            f"batches as arguments of their own; several are merged into one dict."
        )
    if found is not None:
        raise FlowError(
            f"{caller_place()}: {call} is given {hidden_module(value, found)}. It would be called in the driver's "
            f"object, without setup and settings. Pass the module itself as an argument, alone or in a list, tuple or "
            f"dict (as a value); inside the step call its steps."
        )
