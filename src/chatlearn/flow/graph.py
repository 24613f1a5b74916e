"""The graph that a traced flow becomes: nodes in call order, edges by index. Plain data, no tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

BATCH = -1
"""Index of the raw batch, the flow's own argument, where nodes have theirs."""


@dataclass(frozen=True)
class Node:
    """One call of one step.

    Attributes:
        index: position in call order, which is a topological order.
        module: the module that was called.
        step: name of the method.
        occurrence: how many earlier nodes call the same step of the same module.
        inputs: data parameter -> indices of the values that it gets, merged into one dict in this order; the parameters
            of a ``*data`` signature are called ``*0``, ``*1``, ….
        constants: arguments that were plain values in the flow.
        where: ``file:line`` of the call.
    """

    index: int
    module: Any
    step: str
    occurrence: int
    inputs: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Any]
    where: str

    @property
    def label(self) -> str:
        """``module.step``, with the occurrence where there are several."""
        suffix = f"#{self.occurrence}" if self.occurrence else ""
        return f"{self.module.name}.{self.step}{suffix}"

    @property
    def sources(self) -> tuple[int, ...]:
        """Indices of all values that the node reads, in order, without repeats."""
        return tuple(dict.fromkeys(index for refs in self.inputs.values() for index in refs))


@dataclass(frozen=True)
class Graph:
    """A traced flow.

    Attributes:
        name: the flow function's name.
        where: ``file:line`` of its definition.
        nodes: in call order.
        outputs: indices of the values that the flow returns, merged in this order; ``BATCH`` for the raw batch.
        modules: the modules that the flow calls, by name.
        used: indices of all values that a node reads or the flow returns.
    """

    name: str
    where: str
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    modules: Mapping[str, Any] = field(init=False)
    used: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", {node.module.name: node.module for node in self.nodes})
        object.__setattr__(self, "used", frozenset([*self.outputs, *(i for node in self.nodes for i in node.sources)]))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def root(self) -> Node | None:
        """The first node that takes the raw batch; its module builds the data set."""
        return next((node for node in self.nodes if BATCH in node.sources), None)

    def label(self, index: int) -> str:
        """Readable name of a value."""
        return "batch" if index == BATCH else self.nodes[index].label
