"""A graph as text: plain, and as a Mermaid flowchart. Drawings are in :mod:`chatlearn.flow.svg`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from chatlearn.flow.clients import is_module
from chatlearn.flow.graph import BATCH, Graph, Node

_MAX_CONSTANT = 48
"""Characters of a constant's text."""

MERMAID_ENTITIES = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "\n": " ", "\r": " "}
"""What Mermaid would take for markup inside of a quoted label."""


def render(graph: Graph) -> str:
    """One line a node, in call order: number, step, what it reads, its constants, and in brackets what is special.

    Example::

        env_flow(batch)
           1  policy.forward_step  <- batch  [expands 4]
           2  reward.forward_step  <- policy.forward_step
           3  critic.forward_step  <- policy.forward_step, judge=judge  [after reward.forward_step; calls judge]
          =>  reward.forward_step
    """
    width = max(len(node.label) for node in graph)
    lines = [f"{graph.name}(batch)"]
    for node in graph:
        inputs = " | ".join(" + ".join(graph.label(i) for i in refs) for refs in node.inputs.values())
        given = "".join(f", {text}" for text in constants(node))
        special = f"  [{'; '.join(found)}]" if (found := marks(graph, node)) else ""
        lines.append(f"  {node.index + 1:>2}  {node.label:<{width}}  <- {inputs}{given}{special}")
    yields = " + ".join(graph.label(i) for i in graph.outputs) or "nothing"
    lines.append(f"  =>  {yields}")
    return "\n".join(lines)


def constants(node: Node) -> list[str]:
    """The constants of a node as ``name=value``, long values shortened."""
    return [f"{name}={_shortened(_shown(value))}" for name, value in node.constants.items()]


def reshaping(node: Node) -> list[str]:
    """What a node does to the number of rows."""
    expands = [] if node.expands is None else ["expands" if node.expands is True else f"expands {node.expands}"]
    return [*expands, *(["filters"] if node.filters else [])]


def marks(graph: Graph, node: Node) -> list[str]:
    """What is special about a node: how it changes the number of rows, what it waits for, whom it calls."""
    found = reshaping(node)
    if node.after:
        found.append(f"after {', '.join(map(graph.label, node.after))}")
    if node.clients:
        found.append(f"calls {', '.join(client.name for client in node.clients)}")
    return found


def mermaid(graph: Graph) -> str:
    """A Mermaid flowchart, from left to right: solid arrows are data, dotted ones order (``after``) or clients.

    Pages that understand Mermaid (GitHub's among them) draw it from a code block of that name.
    """
    lines = ["---", f"title: {json.dumps(graph.name)}", "---", "flowchart LR", "  batch([batch])"]
    for node in graph:
        text = [node.label, *constants(node), *reshaping(node)]
        lines.append(f"  {_id(node.index)}[{_label(text)}]")
    clients = _clients(graph)
    lines += [f"  c{number}{{{{{_label([client.name])}}}}}" for number, client in enumerate(clients)]
    for node in graph:
        lines += _mermaid_edges(node, clients)
    if graph.outputs:
        lines.append("  yields([yields])")
        lines += [f"  {_id(index)} --> yields" for index in dict.fromkeys(graph.outputs)]
    return "\n".join(lines)


def _mermaid_edges(node: Node, clients: list[Any]) -> list[str]:
    lines: list[str] = []
    for name, refs in node.inputs.items():
        arrow = f"-- {_label([name])} -->" if len(node.inputs) > 1 else "-->"
        lines += [f"  {_id(index)} {arrow} {_id(node.index)}" for index in dict.fromkeys(refs)]
    lines += [f"  {_id(index)} -. after .-> {_id(node.index)}" for index in node.after]
    lines += [f"  {_id(node.index)} -. calls .-> c{clients.index(client)}" for client in node.clients]
    return lines


def _clients(graph: Graph) -> list[Any]:
    """Modules that steps of a flow get as clients, in order, without repeats."""
    return list({id(client): client for node in graph for client in node.clients}.values())


def _id(index: int) -> str:
    return "batch" if index == BATCH else f"n{index}"


def _label(lines: Iterable[str]) -> str:
    """Quoted text of a box or an arrow."""
    escaped = ("".join(MERMAID_ENTITIES.get(character, character) for character in line) for line in lines)
    return f'"{"<br/>".join(escaped)}"'


def _shown(value: object) -> str:
    """Text of a constant, modules by their names."""
    if is_module(value):
        return str(cast("Any", value).name)
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return f"{{{', '.join(f'{key!r}: {_shown(part)}' for key, part in items)}}}"
    if type(value) in (list, tuple):
        parts = [_shown(part) for part in cast("list[object]", value)]
        if isinstance(value, list):
            return f"[{', '.join(parts)}]"
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return repr(value)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CONSTANT else f"{text[: _MAX_CONSTANT - 1]}…"
