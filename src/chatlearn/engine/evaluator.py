"""The executor that measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from chatlearn.data.prompts import num_samples
from chatlearn.data.sampler import Sampler
from chatlearn.data.sources import read_prompts
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.environment import no_training
from chatlearn.engine.executor import Executor, check_steps, in_driver
from chatlearn.engine.prompts import named_sources
from chatlearn.errors import DataError, EngineError
from chatlearn.observe.metrics import as_number
from chatlearn.runtime.base import Future
from chatlearn.runtime.seeding import derive_seed, seed_everything
from chatlearn.types import Batch, SampleIds


@dataclass(frozen=True)
class Evaluation:
    """What one pass over the evaluation data sets gave.

    Attributes:
        metrics: what the steps logged, reduced over a data set, as ``eval/<module>/<name>``; with several data sets
            ``eval/<data set>/<module>/<name>``. Numbers that ``post_process`` returns as a dict, those of numpy and
            torch too, are among them.
        results: what ``post_process`` returned; without one, what the flow yields, batch by batch, in the order of the
            data set. With several data sets a dict from their names to these.
    """

    metrics: dict[str, float]
    results: Any


class Evaluator(Executor):
    """Runs a flow, usually of ``eval_step`` calls, over the whole of one or more data sets, in order.

    Args:
        flow: ``def eval_flow(batch): …``.

    Raises:
        FlowError: the flow can't be traced, or calls a ``train_step``.
    """

    def __init__(self, flow: Callable[[Any], Any]) -> None:
        super().__init__(flow)
        check_steps(self.graph, no_training)
        self._datasets: dict[str, Sequence[Any]] = {}
        self._post_process: Callable[[list[Batch], dict[str, Any]], Any] | None = None

    @property
    def datasets(self) -> Mapping[str, Sequence[Any]]:
        """The data sets by name; a single one is called ``""``."""
        return self._datasets

    def set_dataset(self, prompts: Sequence[Any] | str | Path) -> Self:
        """Sets the prompts that the first module of the flow builds its evaluation data set from."""
        self._datasets = {"": read_prompts(prompts)}
        return self

    def set_multiple_datasets(self, datasets: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]]) -> Self:
        """Sets several data sets: a dict from names to prompts, or a list (the names are then ``0``, ``1``, …).

        Raises:
            EngineError: there are none, or a name is no plain word.
        """
        named = dict(named_sources(datasets, "Evaluator.set_multiple_datasets"))
        if wrong := [name for name in named if not name or "/" in name]:
            raise EngineError(
                "Evaluator.set_multiple_datasets takes a dict such as {'easy': prompts, 'hard': prompts}; names are "
                f"text without '/'. Got {', '.join(map(repr, wrong))}."
            )
        self._datasets = {name: read_prompts(prompts) for name, prompts in named.items()}
        return self

    def set_post_process_func(self, function: Callable[[list[Batch], dict[str, Any]], Any]) -> Self:
        """Has ``function(results, info)`` called where a subclass would define :meth:`post_process`.

        Raises:
            EngineError: it can't be called.
        """
        if not callable(function):
            raise EngineError(f"set_post_process_func takes a function (results, info), got {function!r}.")
        self._post_process = function
        return self

    def post_process(self, results: list[Batch], info: dict[str, Any]) -> Any:
        """What to make of the results of one data set; define it in a subclass.

        Args:
            results: what the flow yields, batch by batch, in the order of the data set.
            info: ``episode`` (complete ones), ``train_iteration`` (global batches trained on) and ``dataset`` (its
                name, ``""`` for a single one).

        Returns:
            Stands in :attr:`Evaluation.results`; the numbers of a dict are metrics ``eval/<name>`` too.
        """
        return results if self._post_process is None else self._post_process(results, info)

    def evaluate(self, deployment: Deployment, episode: int, train_iteration: int) -> Evaluation:
        """One pass over each data set.

        Raises:
            EngineError: no data set was set.
            DataError: one is empty.
        """
        if not self._datasets:
            raise EngineError(
                f"The evaluator of {self.graph.name} has no data set. Call `Evaluator(…).set_dataset(prompts)`."
            )
        metrics: dict[str, float] = {}
        results: dict[str, Any] = {}
        for name, prompts in self._datasets.items():
            which = f"The data set {name!r} of {self.graph.name}" if name else f"The data set of {self.graph.name}"
            if num_samples(prompts, which) == 0:
                raise DataError(f"{which} is empty. Give it at least one prompt.")
            with deployment.own_metrics():
                outputs = self._pass_over(deployment, prompts, f"evaluation after episode {episode}")
                found = deployment.take_metrics()
            seed_everything(derive_seed(deployment.config.runtime.seed, "post_process", name, episode))
            info = {"episode": episode, "train_iteration": train_iteration, "dataset": name}
            results[name] = self.post_process(outputs, info)
            if isinstance(results[name], dict):
                found |= {f"eval/{key}": number for key, number in _numbers_of(results[name]).items()}
            prefix = f"eval/{name}/" if name else "eval/"
            metrics |= {prefix + key.removeprefix("eval/"): value for key, value in found.items()}
        return Evaluation(metrics, results.get("", results))

    def _pass_over(self, deployment: Deployment, prompts: Sequence[Any], place: str) -> list[Batch]:
        """What the flow yields, in the driver, where :meth:`post_process` has it."""
        assert self.graph.root is not None
        root = self.graph.root.module.name
        key, length = deployment.open_dataset(root, prompts, is_eval=True)
        sampler, size = Sampler(deployment.config.runtime.seed, length, shuffle=False), self.batch_size(deployment)

        def batches() -> Iterator[tuple[Future, SampleIds]]:
            for position in range(0, length, size):
                ids = sampler.ids(position, min(size, length - position))
                yield deployment.fetch(root, [(key, index) for index in sampler.indices(ids)], position), ids

        made = self.run(
            deployment, self.fetched(deployment, batches()), phase="eval", counters={}, place=place, is_eval=True
        )
        return [in_driver(deployment, part.sources) for part in made]


def _numbers_of(values: Mapping[Any, Any]) -> dict[Any, float]:
    numbers = {key: as_number(value) for key, value in values.items() if not isinstance(value, bool)}
    return {key: number for key, number in numbers.items() if number is not None}
