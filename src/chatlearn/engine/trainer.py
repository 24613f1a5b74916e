"""The executor that trains on experience."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from chatlearn.checkpoint.store import RunState
from chatlearn.data.stream import Experience, GlobalBatch, StreamDataset
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.executor import Executor, check_steps
from chatlearn.engine.prompts import Prompts
from chatlearn.flow.graph import BATCH, Node
from chatlearn.runtime.base import Future
from chatlearn.runtime.calls import Rows, Value


class Trainer(Executor):
    """Trains on global batches with a flow of ``train_step`` calls; other steps in it run per micro-batch.

    Args:
        flow: ``def trainer_flow(batch): …``; what it returns stands for nothing.

    Raises:
        FlowError: the flow can't be traced.
    """

    def __init__(self, flow: Callable[[Any], Any]) -> None:
        super().__init__(flow)
        check_steps(self.graph, _keeps_rows)
        self.given = self.prompts = Prompts()

    def stream(self, deployment: Deployment, state: RunState) -> Iterator[Experience]:
        """One episode's samples straight from the data set, for an engine without an environment."""
        assert self.graph.root is not None
        prompts = self.prompts.open(deployment, self.graph.root.module.name)
        size = deployment.config.runtime.train_global_batch_size
        for batch, ids in self.fetched(deployment, prompts.episode(state.position, size, state.weight_version)):
            state.position += len(ids)
            yield Experience((batch,), ids)

    def train(self, deployment: Deployment, state: RunState, experience: StreamDataset) -> None:
        """Uses every sample exactly once per training epoch."""
        for epoch in range(deployment.config.runtime.num_training_epoch):
            for batch in experience.batches(epoch):
                self._train_step(deployment, state, batch, epoch)
                state.global_batches += 1
        deployment.settle()

    def _train_step(self, deployment: Deployment, state: RunState, batch: GlobalBatch, epoch: int) -> None:
        iteration = state.global_batches
        ends: dict[int, Future] = {}
        values: dict[int, Value] = {BATCH: tuple(Rows(sources, rows) for sources, rows in batch.pieces)}
        for node in self.graph:
            call = deployment.run(
                node,
                values,
                batch.ids,
                phase="train",
                index=iteration,
                place=f"episode {state.episode + 1}, epoch {epoch}, global batch {iteration}",
                run_parameters={
                    "iteration": iteration,
                    "train_info": {"iteration": iteration, "episode": state.episode, "epoch": epoch},
                },
                used=node.index in self.graph.used,
                micro_batch_size=deployment.config.runtime.train_micro_batch_size,
                after=tuple(ends[index] for index in node.after),
            )
            values[node.index], ends[node.index] = call.output, call.report


def _keeps_rows(node: Node) -> str | None:
    if not node.reshapes:
        return None
    return "a step that expands or filters belongs into the flow of an Environment, before samples become batches."
