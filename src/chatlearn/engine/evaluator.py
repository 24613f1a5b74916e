"""The executor that measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatlearn.data.sampler import Sampler
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.environment import _no_training
from chatlearn.engine.executor import Executor, check_steps
from chatlearn.errors import EngineError
from chatlearn.modules.base import merge_batches
from chatlearn.types import Batch


@dataclass(frozen=True)
class Evaluation:
    """What one pass over an evaluation data set gave.

    Attributes:
        metrics: what the steps logged, reduced over the data set, as ``eval/<module>/<name>``.
        results: what the flow yields, batch by batch, in the order of the data set.
    """

    metrics: dict[str, float]
    results: list[Batch]


class Evaluator(Executor):
    """Runs a flow, usually of ``eval_step`` calls, over the whole of a data set, in order.

    Args:
        flow: ``def eval_flow(batch): …``.

    Raises:
        FlowError: the flow can't be traced, or calls a ``train_step``.
    """

    def __init__(self, flow: Callable[[Any], Any]) -> None:
        super().__init__(flow)
        check_steps(self.graph, _no_training)
        self.prompts: Sequence[Any] | None = None

    def set_dataset(self, prompts: Sequence[Any]) -> Evaluator:
        """Sets the prompts that the first module of the flow builds its evaluation data set from."""
        self.prompts = prompts
        return self

    def evaluate(self, deployment: Deployment, place: str) -> Evaluation:
        """One pass over the data set.

        Raises:
            EngineError: no data set was set.
        """
        if self.prompts is None:
            raise EngineError(
                f"The evaluator of {self.graph.name} has no data set. Call `Evaluator(…).set_dataset(prompts)`."
            )
        assert self.graph.root is not None
        root = self.graph.root.module.name
        key, length = deployment.open_dataset(root, self.prompts, is_eval=True)
        sampler, size = (
            Sampler(deployment.config.runtime.seed, length, shuffle=False),
            self.batch_size(deployment),
        )
        counters: dict[str, int] = {}
        results = []
        for position in range(0, length, size):
            ids = sampler.ids(position, min(size, length - position))
            batch = deployment.fetch(root, key, sampler.indices(ids), position)
            outputs = self.run(deployment, batch, ids, phase="eval", counters=counters, place=place, is_eval=True)
            results.append(merge_batches([deployment.cluster.get(output) or {} for output in outputs]))
        return Evaluation(deployment.take_metrics(), results)
