"""Runs a flow over batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chatlearn.engine.deployment import Deployment
from chatlearn.errors import FlowError
from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.trace import trace
from chatlearn.runtime.base import Future
from chatlearn.runtime.worker import Rows
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
        return max(deployment.batch_size(name) for name in self.graph.modules)

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
    ) -> tuple[Future, ...]:
        """Runs the flow on one batch.

        Args:
            deployment: of the modules.
            batch: the raw batch.
            ids: of its rows.
            phase: ``experience`` or ``eval``.
            counters: module -> batches that it has been given before; moved on by this call.
            place: words for errors.
            is_eval: passed to steps whose signature has ``is_eval``.

        Returns:
            What the flow yields: one future per value, to be merged in order.
        """
        values: dict[int, tuple[Rows, ...]] = {BATCH: (Rows((batch,)),)}
        advanced: dict[str, int] = {}
        for node in self.graph:
            size = deployment.batch_size(node.module.name)
            starts = range(0, len(ids), size)
            outputs = []
            for number, start in enumerate(starts):
                stop = min(start + size, len(ids))
                iteration = counters.get(node.module.name, 0) + number
                outputs.append(
                    deployment.run(
                        node,
                        values if len(starts) == 1 else _rows(values, node, start, stop),
                        ids if len(starts) == 1 else ids.slice(start, stop),
                        phase=phase,
                        index=iteration,
                        place=f"{place}, batch {iteration}",
                        run_parameters={"iteration": iteration, "is_eval": is_eval},
                        used=node.index in self.graph.used,
                    )
                )
            advanced[node.module.name] = len(starts)
            if node.index in self.graph.used:
                values[node.index] = (Rows((self._joined(deployment, node, outputs),)),)
        for name, count in advanced.items():
            counters[name] = counters.get(name, 0) + count
        return tuple(values[i][0].sources[0] for i in self.graph.outputs)

    def _joined(self, deployment: Deployment, node: Node, outputs: list[Future]) -> Future:
        if len(outputs) == 1:
            return outputs[0]
        handle = deployment.handles(node.module.name)[0]
        return deployment.cluster.call(handle, "gather", tuple(Rows((output,)) for output in outputs))


def _rows(values: Mapping[int, tuple[Rows, ...]], node: Node, start: int, stop: int) -> dict[int, tuple[Rows, ...]]:
    """The same rows of every value that a node reads."""
    return {i: (Rows(values[i][0].sources, range(start, stop)),) for i in node.sources}


def check_steps(graph: Graph, allowed: Callable[[Node], str | None]) -> None:
    """Raises FlowError for the first node that does not belong into this kind of flow (``allowed`` says why)."""
    for node in graph:
        if reason := allowed(node):
            raise FlowError(f"{node.where}: {node.label} in {graph.name}: {reason}")
