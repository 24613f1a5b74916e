"""Modules that a flow gives to steps of other modules: their clients (agents get judges, tools, critics)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from chatlearn.errors import FlowError
from chatlearn.flow.graph import Node
from chatlearn.flow.symbols import caller_place


def is_module(value: object) -> bool:
    """True for an instance of a module's class (known by its table of steps, since modules stand above flows)."""
    return isinstance(getattr(type(value), "_step_functions", None), dict)


def find_clients(value: object, around: tuple[int, ...] = ()) -> list[Any]:
    """The modules in nested dicts, lists and tuples, in order, without repeats; ``around``: ids of those it stands in.

    Raises:
        FlowError: one contains itself.
    """
    if is_module(value):
        return [value]
    here = id(value)
    if here in around:
        raise FlowError(f"{caller_place()}: a {type(value).__name__} that contains itself can't be a step's constant.")
    if isinstance(value, dict):
        parts = list(cast("dict[object, object]", value).values())
    elif isinstance(value, (list, tuple)):
        parts = list(cast("list[object]", value))
    else:
        return []
    inside = (*around, here)
    return list({id(client): client for part in parts for client in find_clients(part, inside)}.values())


def check_clients(nodes: Iterable[Node]) -> None:
    """Modules must not be clients of each other: each would wait for the other. Takes nodes of one or more graphs.

    Raises:
        FlowError: a module is its own client, directly or through others; the text holds the lines of all calls of
            the circle.
    """
    seen: list[Node] = []
    for node in nodes:
        seen.append(node)
        for client in node.clients:
            if client is node.module:
                raise FlowError(
                    f"{node.where}: {node.label} is given its own module as a client. Call the method on `self` "
                    f"inside of the step."
                )
            if back := _chain(seen, client, node.module):
                calls = ", and ".join(f"{n.label} is given {c.name!r} at {n.where}" for n, c in back)
                raise FlowError(
                    f"{node.where}: {node.label} is given {client.name!r} as a client, but {calls}: each would wait "
                    f"for the other. Let one of them return what the other needs."
                )


def _chain(nodes: list[Node], start: Any, goal: Any) -> list[tuple[Node, Any]]:
    """Calls (node, client) that lead from the module ``start`` to ``goal``; empty where none do."""
    chains: list[list[tuple[Node, Any]]] = [[(n, c)] for n in nodes if n.module is start for c in n.clients]
    reached = {id(start)}
    while chains:
        chain = chains.pop(0)
        _, last = chain[-1]
        if last is goal:
            return chain
        if id(last) not in reached:
            reached.add(id(last))
            chains += [[*chain, (n, c)] for n in nodes if n.module is last for c in n.clients]
    return []
