"""What one trace has seen so far.

A stand-in knows the recorder of its trace, so recording needs no global state. :data:`ACTIVE` only tells that a trace
is on, for errors that could not be found otherwise: a step that is called in a flow without any of the flow's values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import combinations
from typing import Any

from chatlearn.errors import FlowError
from chatlearn.flow.clients import find_clients
from chatlearn.flow.graph import Node, deepest_space, lineage_of, space_of
from chatlearn.flow.symbols import Symbol, caller_place

ACTIVE: ContextVar[Recorder | None] = ContextVar("chatlearn_trace", default=None)
"""The recorder of the flow that is being traced in this context."""


class Recorder:
    """The nodes of one trace; closed when the flow has returned.

    Attributes:
        flow: the flow's name.
        nodes: in call order.
        waits: per ``with after(…)`` that is open, the indices of the values that it names.
        idle_waits: ``file:line`` per ``after(…)`` that no ``with`` has entered yet, by the object.
        closed: the flow has returned.
    """

    def __init__(self, flow: str) -> None:
        self.flow = flow
        self.nodes: list[Node] = []
        self.waits: list[tuple[int, ...]] = []
        self.idle_waits: dict[object, str] = {}
        self.closed = False

    @contextmanager
    def recording(self) -> Generator[None]:
        """While the flow runs."""
        token = ACTIVE.set(self)
        try:
            yield
        finally:
            ACTIVE.reset(token)
            self.closed = True

    def add(
        self,
        module: Any,
        step: str,
        function: Callable[..., Any],
        inputs: Mapping[str, tuple[int, ...]],
        constants: Mapping[str, Any],
    ) -> Symbol:
        """Adds a call of ``function``, the plain step, and returns the stand-in for its output.

        Raises:
            FlowError: the rows of its inputs can't be matched, or a declaration of the module is malformed.
        """
        where = caller_place()
        sources = tuple(dict.fromkeys(index for refs in inputs.values() for index in refs))
        node = Node(
            index=len(self.nodes),
            module=module,
            step=step,
            occurrence=sum(node.module is module and node.step == step for node in self.nodes),
            inputs=inputs,
            constants=constants,
            where=where,
            after=tuple(dict.fromkeys(i for wait in self.waits for i in wait if i not in sources)),
            space=joint_space(self.nodes, sources, f"{where}: {module.name}.{step} gets"),
            expands=getattr(function, "_chatlearn_expands", None) or None,
            filters=bool(getattr(function, "_chatlearn_filters", False)),
            clients=tuple(find_clients(constants)),
            reads=_declared(module, step, function, "reads") or frozenset(),
            writes=_declared(module, step, function, "writes"),
        )
        self.nodes.append(node)
        return Symbol(self, node.index, f"the output of {node.label}")


def joint_space(nodes: Sequence[Node], indices: Sequence[int], who: str) -> int:
    """The deepest of the row spaces of some values, which have to lie on one line.

    Args:
        nodes: of the flow.
        indices: of the values.
        who: beginning of the error.

    Raises:
        FlowError: two values come from reshaping steps of which neither has worked on the other's rows.
    """
    spaces = list(dict.fromkeys(space_of(nodes, index) for index in indices))
    for one, other in combinations(spaces, 2):
        if one not in lineage_of(nodes, other) and other not in lineage_of(nodes, one):
            first, second = nodes[one], nodes[other]
            raise FlowError(
                f"{who} rows that can't be matched: {first.label} ({first.where}) and {second.label} "
                f"({second.where}) make new rows, neither from those of the other. Call one of them on the output of "
                f"the other, or bring the values together in the step that makes the rows."
            )
    return deepest_space(nodes, spaces)


def _declared(module: Any, step: str, function: Callable[..., Any], name: str) -> frozenset[str] | None:
    """``reads`` or ``writes``: the step's own, else the class's; None where neither declares any."""
    own = getattr(function, f"_chatlearn_{name}", None)
    keys = getattr(module, name, ()) if own is None else own
    if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
        raise FlowError(
            f"{caller_place()}: `{name}` of {module.name}.{step} is {keys!r}; give a set of keys, such as "
            f"`{name} = frozenset({{'tokens'}})`."
        )
    return frozenset(keys) if keys or own is not None else None
