"""The executor that makes experience."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chatlearn.checkpoint.store import RunState
from chatlearn.data.stream import Experience
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.executor import Executor, check_steps
from chatlearn.engine.prompts import OpenPrompts, Prompts
from chatlearn.engine.refill import Refill
from chatlearn.flow.graph import Node
from chatlearn.runtime.base import Future
from chatlearn.runtime.rows import taken, whole
from chatlearn.types import SampleIds


class Environment(Executor):
    """Makes ``sample_per_episode`` samples of experience with a flow of inference steps.

    Args:
        flow: ``def env_flow(batch): …``, returning the values that the trainer gets, merged in order.

    Raises:
        FlowError: the flow can't be traced, or calls a ``train_step``.
    """

    def __init__(self, flow: Callable[[Any], Any]) -> None:
        super().__init__(flow)
        check_steps(self.graph, no_training)
        self.given = self.prompts = Prompts()

    def set_dataset(self, prompts: Sequence[Any]) -> Environment:
        """Sets the prompts that the first module of the flow builds its data set from."""
        self.given = self.prompts = self.given.of(prompts)
        return self

    def set_multiple_datasets(
        self, datasets: Sequence[Any] | Mapping[str, Any], data_ratio: Sequence[float] | None = None
    ) -> Environment:
        """Sets several data sets, mixed in a fixed proportion; see :meth:`Engine.set_multiple_datasets`."""
        self.given = self.prompts = self.given.several(datasets, data_ratio)
        return self

    def stream(
        self, deployment: Deployment, state: RunState, note: Callable[[str], None] = print
    ) -> Iterator[Experience]:
        """Makes one episode's experience, batch by batch, and moves the positions in ``state`` on.

        As many batches are in flight as the cluster can use; they come out complete, in batch order. One that is
        complete comes out before the driver turns to the next, so that training can begin. Where steps have dropped
        samples, further rounds of prompts follow (``runtime.max_refill_rounds``), each once the one before is complete.

        Args:
            deployment: of the modules.
            state: of the run.
            note: is told of an episode that has too few samples after its last round.

        Raises:
            DataError: further rounds are allowed, and after the last one of the first episode there are no samples.
        """
        assert self.graph.root is not None
        prompts = self.prompts.open(deployment, self.graph.root.module.name)
        runtime = deployment.config.runtime
        refill = Refill(runtime, self.graph, state.episode)
        for count in refill.rounds():
            for experience in self._round(deployment, state, prompts, count, refill):
                yield _first_rows(experience, refill.keep(experience.ids))
        if runtime.max_refill_rounds:
            deployment.metrics.add(refill.metrics())
            if text := refill.shortage():
                note(text)

    def _round(
        self, deployment: Deployment, state: RunState, prompts: OpenPrompts, count: int, refill: Refill
    ) -> Iterator[Experience]:
        """The experience of the next ``count`` samples, complete."""
        further = f", further round {refill.num_further}" if refill.num_further else ""
        batches = prompts.episode(state.position, self.batch_size(deployment), state.weight_version, count)
        yield from self.run(
            deployment,
            _moving(state, self.fetched(deployment, batches)),
            phase="experience",
            counters=state.generation_batches,
            place=f"episode {state.episode + 1}{further}",
            lost=refill.lost,
        )


def _moving(state: RunState, batches: Iterable[tuple[Future, SampleIds]]) -> Iterator[tuple[Future, SampleIds]]:
    """Moves the position on as batches go into the flow; those that are only fetched do not count."""
    for batch, ids in batches:
        state.position += len(ids)
        yield batch, ids


def _first_rows(experience: Experience, count: int) -> Experience:
    """A batch of experience without its rows from ``count`` on."""
    num = len(experience.ids)
    if count == num:
        return experience
    rows = range(count)
    sources = tuple(taken(whole(source, num), rows) for source in experience.sources if rows)
    return replace(experience, sources=sources, ids=experience.ids.take(rows))


def no_training(node: Node) -> str | None:
    """Why a node does not belong into a flow that trains nothing, if it does not."""
    return "train_step belongs into the flow of a Trainer." if node.step == "train_step" else None
