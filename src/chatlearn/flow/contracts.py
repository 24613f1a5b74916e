"""Which keys each value of a flow is known to hold, and which steps read keys that can't be there.

Steps may declare what they need (``reads``) and add (``writes``). A step that declares ``writes`` returns the keys of
its inputs and these; one that declares none may return anything, so nothing below it is ever refused on its account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from chatlearn.flow.graph import BATCH, Graph, Node


class Beyond(IntEnum):
    """What a value may hold beyond the keys that are known."""

    NOTHING = 0
    DATA = 1
    """Keys of the data set, which nobody has listed."""
    ANYTHING = 2
    """Whatever a step without ``writes`` has put there."""


@dataclass(frozen=True)
class Known:
    """What is known of the keys of a value.

    Attributes:
        keys: that it holds.
        beyond: what it may hold besides.
    """

    keys: frozenset[str] = frozenset()
    beyond: Beyond = Beyond.NOTHING

    @property
    def is_open(self) -> bool:
        """True where it may hold further keys."""
        return self.beyond is not Beyond.NOTHING

    def __or__(self, other: Known) -> Known:
        return Known(self.keys | other.keys, max(self.beyond, other.beyond))


UNKNOWN_DATA = Known(beyond=Beyond.DATA)
"""Samples of a data set whose keys nobody has listed."""

_UNDECLARED = Known(beyond=Beyond.ANYTHING)


def reads_of(module: Any, function: Callable[..., Any]) -> frozenset[str]:
    """The keys that a step (``function``, of ``module``) declares to need: its own, else those of the class."""
    own = getattr(function, "_chatlearn_reads", None)
    return module.reads if own is None else own


def yields(graph: Graph, raw: frozenset[str] | Known | None = None) -> Known:
    """The keys of what a flow yields, as far as declarations tell.

    Args:
        graph: of the flow.
        raw: keys of its raw batch; None where they are not known.
    """
    values = _known_values(graph, raw)
    return _union(values[index] for index in graph.outputs)


def missing_reads(
    graph: Graph, raw: frozenset[str] | Known | None = None, *, others: Iterable[Graph] = ()
) -> list[str]:
    """Finds steps that read a key which none of their inputs can hold.

    A key is missing where the keys of all inputs are known and it is not one of them; or where the inputs may hold
    unlisted keys of the data set, but a step of some flow makes the key, from other keys, and is not upstream.

    Args:
        graph: of the flow.
        raw: keys of its raw batch; None where they are not known. For a trainer, what the environment
            :func:`yields`.
        others: graphs of further flows whose steps may be the makers of a missing key, such as the environment's.

    Returns:
        One text a step, with its line, the keys, who makes them and what to do; empty where nothing is wrong.
    """
    values = _known_values(graph, raw)
    graphs = [graph, *others]
    problems: list[str] = []
    for node in graph:
        inputs = _union(values[index] for index in node.sources)
        makers = {key: _makers(key, node, graphs) for key in sorted(node.reads - inputs.keys)}
        missing = {key: found for key, found in makers.items() if _is_missing(inputs, found)}
        if missing:
            problems.append(_problem(graph, node, missing))
    return problems


def _known_values(graph: Graph, raw: frozenset[str] | Known | None) -> dict[int, Known]:
    batch = raw if isinstance(raw, Known) else UNKNOWN_DATA if raw is None else Known(raw)
    values = {BATCH: batch}
    for node in graph:
        inputs = _union(values[index] for index in node.sources)
        values[node.index] = _UNDECLARED if node.writes is None else inputs | Known(node.writes)
    return values


def _union(values: Iterable[Known]) -> Known:
    whole = Known()
    for value in values:
        whole |= value
    return whole


def _makers(key: str, reader: Node, graphs: Iterable[Graph]) -> list[tuple[Graph, Node]]:
    """Steps that make a key from others. One that reads it itself only changes what the data set gave."""
    return [
        (graph, node)
        for graph in graphs
        for node in graph
        if key in (node.writes or ()) and key not in node.reads and node is not reader
    ]


def _is_missing(inputs: Known, makers: list[tuple[Graph, Node]]) -> bool:
    return inputs.beyond is Beyond.NOTHING or (inputs.beyond is Beyond.DATA and bool(makers))


def _problem(graph: Graph, node: Node, missing: Mapping[str, list[tuple[Graph, Node]]]) -> str:
    keys = ", ".join(repr(key) for key in missing)
    inputs = " and ".join(graph.label(index) for index in node.sources)
    hints = dict.fromkeys(_hint(graph, node, key, makers) for key, makers in missing.items())
    return f"{node.where}: {node.label} reads {keys}, which {inputs} can't hold. {' '.join(hints)}"


def _hint(graph: Graph, reader: Node, key: str, makers: list[tuple[Graph, Node]]) -> str:
    """Who makes the key, and how it would come to the reader."""
    if not makers:
        return f"No step of the flow declares to write {key!r}: pass a value that holds it, or add it to the data set."
    home, maker = makers[0]
    made = f"{maker.label} ({maker.where}) writes {key!r}"
    if home is not graph:
        return f"{made}: return its output in {home.name}."
    if maker.index > reader.index:
        return f"{made}, but is called later: call it first, and pass its output to {reader.label}."
    return f"{made}: pass its output to {reader.label}."
