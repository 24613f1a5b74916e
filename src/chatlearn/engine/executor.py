"""Runs a flow over batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatlearn.engine.deployment import Call, Deployment
from chatlearn.errors import FlowError
from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.trace import trace
from chatlearn.runtime.base import Future
from chatlearn.runtime.calls import Report, Rows
from chatlearn.types import SampleIds


class Executor:
    """A traced flow and the order in which its calls go out.

    Args:
        flow: a plain function of one batch over modules; see :func:`chatlearn.flow.trace`.

    Raises:
        FlowError: the flow can't be traced.
    """

    def __init__(self, flow: Callable[[Any], Any]) -> None:
        self.graph: Graph = trace(flow)

    def batch_size(self, deployment: Deployment) -> int:
        """Samples drawn at a time: the largest generation batch of the flow's modules; smaller ones get pieces of
        it.
        """
        return max(deployment.batch_size(node.module.name) for node in self.graph)

    def run(
        self,
        deployment: Deployment,
        batch: Future,
        ids: SampleIds,
        *,
        phase: str,
        counters: dict[str, int],
        place: str,
        is_eval: bool = False,
        lost: dict[int, int] | None = None,
    ) -> tuple[tuple[Future, ...], SampleIds]:
        """Runs the flow on one batch.

        Args:
            deployment: of the modules.
            batch: the raw batch.
            ids: of its rows.
            phase: ``experience`` or ``eval``.
            counters: module -> batches that it has been given before; moved on by this call.
            place: words for errors.
            is_eval: passed to steps whose signature has ``is_eval``.
            lost: index of a node -> input rows that none of its output rows comes from; added to by this call.

        Returns:
            What the flow yields: one future per value, to be merged in order; and the ids of its rows.
        """
        pass_ = _Pass(self, deployment, batch, ids, {} if lost is None else lost)
        advanced: dict[str, int] = {}
        for node in self.graph:
            rows = pass_.ids[node.space]
            calls: list[Call] = []
            for part in rows.pieces(deployment.batch_size(node.module.name)):
                piece = None if len(part) == len(rows) else part
                iteration = counters.get(node.module.name, 0) + len(calls)
                calls.append(
                    deployment.run(
                        node,
                        pass_.inputs(node, piece),
                        rows if piece is None else rows.take(piece),
                        phase=phase,
                        index=iteration,
                        place=f"{place}, batch {iteration}",
                        run_parameters={"iteration": iteration, "is_eval": is_eval},
                        used=node.index in self.graph.used,
                        after=pass_.ends(node),
                    )
                )
            advanced[node.module.name] = max(advanced.get(node.module.name, 0), len(calls))
            pass_.finish(node, calls)
        for name, count in advanced.items():
            counters[name] = counters.get(name, 0) + count
        return pass_.outputs()

    def gathered(self, deployment: Deployment, rows: Rows) -> Future:
        """Some rows of a batch as a batch of their own."""
        handle = deployment.handles(next(iter(self.graph.modules)))[0]
        return deployment.cluster.call(handle, "gather", (rows,))


class _Pass:
    """One batch on its way through a flow: what each value stands for, and which rows there are in each row space."""

    def __init__(
        self, executor: Executor, deployment: Deployment, batch: Future, ids: SampleIds, lost: dict[int, int]
    ) -> None:
        self.ids = {BATCH: ids}
        self._executor, self._deployment, self._lost = executor, deployment, lost
        self._graph = executor.graph
        self._values: dict[int, Future] = {BATCH: batch}
        self._calls: dict[int, list[Call]] = {}
        self._source_rows: dict[int, list[int]] = {}

    def inputs(self, node: Node, piece: range | None) -> dict[int, tuple[Rows, ...]]:
        """The values that a node reads, rows of ``piece`` only."""
        return {index: (self._rows(index, node.space, piece),) for index in node.sources}

    def ends(self, node: Node) -> tuple[Future, ...]:
        """Outputs that have to be there before the node starts, beside its inputs."""
        return tuple(call.output for index in node.after for call in self._calls[index])

    def finish(self, node: Node, calls: list[Call]) -> None:
        """Takes what the calls of a node gave."""
        self._calls[node.index] = calls
        if node.index in self._graph.used and calls:
            self._values[node.index] = self._joined(node, [call.output for call in calls])
        if node.reshapes:
            self._reshape(node, calls)

    def outputs(self) -> tuple[tuple[Future, ...], SampleIds]:
        """What the flow yields, in the deepest row space among its values."""
        space = self._graph.output_space
        ids = self.ids[space]
        if not len(ids):
            return (), ids
        return tuple(self._aligned(index, space) for index in self._graph.outputs), ids

    def _rows(self, index: int, space: int, piece: range | None) -> Rows:
        rows = self._path(index, space)
        if rows is not None and piece is not None:
            return Rows((self._values[index],), [rows[row] for row in piece])
        return Rows((self._values[index],), piece if rows is None else rows)

    def _path(self, index: int, space: int) -> list[int] | None:
        """Rows of a value that the rows of a later space were made of; ``None`` where they are the same."""
        rows: list[int] | None = None
        own = self._graph.space(index)
        for step in self._graph.lineage(space):
            if step == own:
                break
            rows = self._source_rows[step] if rows is None else [self._source_rows[step][row] for row in rows]
        return rows

    def _reshape(self, node: Node, calls: list[Call]) -> None:
        """Begins a row space; waits for the calls, since nobody else knows how many rows there are."""
        ids, offset = self.ids[node.space], 0
        rows: list[int] = []
        for call in calls:
            report: Report = self._deployment.cluster.get(call.report)
            rows += [offset + row for row in report.source_rows or ()]
            offset += call.num_rows
        if num_lost := len(ids) - len(set(rows)):
            self._lost[node.index] = self._lost.get(node.index, 0) + num_lost
        made = ids.take(rows) if node.filters else ids.expanded(rows)
        if (order := made.together()) is not None:
            rows, made = [rows[row] for row in order], made.take(order)
            if node.index in self._values:
                self._values[node.index] = self._gathered(Rows((self._values[node.index],), order))
        self._source_rows[node.index] = rows
        self.ids[node.index] = made

    def _aligned(self, index: int, space: int) -> Future:
        rows = self._path(index, space)
        if rows is None:
            return self._values[index]
        return self._gathered(Rows((self._values[index],), rows))

    def _gathered(self, rows: Rows) -> Future:
        return self._executor.gathered(self._deployment, rows)

    def _joined(self, node: Node, outputs: list[Future]) -> Future:
        if len(outputs) == 1:
            return outputs[0]
        handle = self._deployment.handles(node.module.name)[0]
        return self._deployment.cluster.call(handle, "gather", tuple(Rows((output,)) for output in outputs))


def check_steps(graph: Graph, allowed: Callable[[Node], str | None]) -> None:
    """Raises FlowError for the first node that does not belong into this kind of flow (``allowed`` says why)."""
    for node in graph:
        if reason := allowed(node):
            raise FlowError(f"{node.where}: {node.label} in {graph.name}: {reason}")
