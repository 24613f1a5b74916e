"""The graph that a traced flow becomes: nodes in call order, edges by index. Plain data, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BATCH = -1
"""Index of the raw batch, the flow's own argument, where nodes have theirs; the row space of its rows too."""


@dataclass(frozen=True)
class Node:
    """One call of one step.

    Attributes:
        index: position in call order, which is a topological order.
        module: the module that was called.
        step: name of the method.
        occurrence: how many earlier nodes call the same step of the same module.
        inputs: data parameter -> indices of the values that it gets, merged into one dict in this order; parameters
            stand in the order of the signature, those of a ``*data`` signature are called ``*0``, ``*1``, ….
        constants: arguments that were plain values in the flow, modules among them.
        where: ``file:line`` of the call.
        after: indices of the values that have to be complete before the node starts, beside those that it reads.
        space: row space in which the node runs, the deepest one among its inputs; see :meth:`Graph.space`.
        expands: rows that the step makes of one: a number, True for any number, None for one.
        filters: the step may drop rows.
        clients: the modules among the constants, nested lists, tuples and dicts included, in order, without repeats.
        reads: keys that the step declares to need.
        writes: keys that the step declares to add to those of its inputs; None where it may return anything.
    """

    index: int
    module: Any
    step: str
    occurrence: int
    inputs: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Any]
    where: str
    after: tuple[int, ...] = ()
    space: int = BATCH
    expands: int | None = None
    filters: bool = False
    clients: tuple[Any, ...] = ()
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] | None = None

    @property
    def label(self) -> str:
        """``module.step``, with the occurrence where there are several."""
        suffix = f"#{self.occurrence}" if self.occurrence else ""
        return f"{self.module.name}.{self.step}{suffix}"

    @property
    def sources(self) -> tuple[int, ...]:
        """Indices of all values that the node reads, in order, without repeats."""
        return tuple(dict.fromkeys(index for refs in self.inputs.values() for index in refs))

    @property
    def reshapes(self) -> bool:
        """True where the output's rows are not those of the inputs one by one, so that a new row space begins."""
        return self.expands is not None or self.filters


@dataclass(frozen=True)
class Graph:
    """A traced flow.

    Attributes:
        name: the flow function's name.
        where: ``file:line`` of its definition.
        nodes: in call order.
        outputs: indices of the values that the flow returns, merged in this order; ``BATCH`` for the raw batch.
        modules: by name, the modules that the flow calls, then those that are only given to steps as clients.
        used: indices of all values that a node reads or the flow returns.
        awaited: indices of all values that a node waits for without reading them.
    """

    name: str
    where: str
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    modules: Mapping[str, Any] = field(init=False)
    used: frozenset[int] = field(init=False)
    awaited: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        modules = [*(node.module for node in self.nodes), *(client for node in self.nodes for client in node.clients)]
        object.__setattr__(self, "modules", {module.name: module for module in modules})
        object.__setattr__(self, "used", frozenset([*self.outputs, *(i for node in self.nodes for i in node.sources)]))
        object.__setattr__(self, "awaited", frozenset(i for node in self.nodes for i in node.after))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def root(self) -> Node | None:
        """The first node that takes the raw batch; its module builds the data set."""
        return next((node for node in self.nodes if BATCH in node.sources), None)

    def label(self, index: int) -> str:
        """Readable name of a value."""
        return "batch" if index == BATCH else self.nodes[index].label

    def space(self, index: int) -> int:
        """Row space of a value: ``BATCH``, or the index of the reshaping node that its rows come from."""
        return space_of(self.nodes, index)

    def lineage(self, space: int) -> tuple[int, ...]:
        """A row space and those that it was made from, up to ``BATCH``."""
        return lineage_of(self.nodes, space)

    @property
    def output_space(self) -> int:
        """Row space of what the flow yields: the deepest one among its outputs."""
        return deepest_space(self.nodes, map(self.space, self.outputs))


def space_of(nodes: Sequence[Node], index: int) -> int:
    """Row space of the value ``index``."""
    if index == BATCH or nodes[index].reshapes:
        return index
    return nodes[index].space


def lineage_of(nodes: Sequence[Node], space: int) -> tuple[int, ...]:
    """A row space and those that it was made from, up to ``BATCH``."""
    spaces = [space]
    while spaces[-1] != BATCH:
        spaces.append(nodes[spaces[-1]].space)
    return tuple(spaces)


def deepest_space(nodes: Sequence[Node], spaces: Iterable[int]) -> int:
    """Of row spaces that lie on one line, the one that is farthest from ``BATCH``; ``BATCH`` for none."""
    return max(spaces, key=lambda space: len(lineage_of(nodes, space)), default=BATCH)
