"""What an executor draws its samples from: one data set or several, in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatlearn.config.schema import Config
from chatlearn.data.lengths import reranked
from chatlearn.data.sampler import PromptSampler, make_sampler
from chatlearn.data.sources import read_prompts
from chatlearn.engine.deployment import Deployment
from chatlearn.errors import EngineError
from chatlearn.guards import is_instance
from chatlearn.runtime.base import Future
from chatlearn.types import SampleIds


@dataclass(frozen=True)
class Prompts:
    """Data sets and the order in which they are drawn from.

    Attributes:
        datasets: sequences of prompts.
        ratio: shares of several data sets; ``None`` goes by their lengths.
        sampler: a function of the user's that chooses prompts, see :meth:`Engine.set_sampler`.
    """

    datasets: tuple[Any, ...] = ()
    ratio: tuple[float, ...] | None = None
    sampler: Callable[[int, int, int], int] | None = None

    def of(self, source: Any) -> Prompts:
        """The same with one data set: a sequence, or a file (see :func:`chatlearn.data.sources.read_prompts`)."""
        return replace(self, datasets=(read_prompts(source),), ratio=None)

    def several(self, sources: Sequence[Any] | Mapping[str, Any], ratio: Sequence[float] | None) -> Prompts:
        """The same with several data sets.

        Raises:
            EngineError: there are none, or the shares are not one positive number for each.
        """
        parts = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
        if not parts:
            raise EngineError("set_multiple_datasets got no data sets. Give a list of data sets, or a dict of them.")
        return replace(self, datasets=tuple(map(read_prompts, parts)), ratio=_shares(ratio, len(parts), "data_ratio"))

    def configured(self, config: Config) -> Prompts:
        """The same, with what the configuration says where the program says nothing."""
        runtime, prompts = config.runtime, self
        if not prompts.datasets and runtime.data_path is not None:
            paths = [runtime.data_path] if isinstance(runtime.data_path, str) else runtime.data_path
            prompts = prompts.several(paths, None)
        if prompts.ratio is None and runtime.data_ratio is not None and prompts.datasets:
            prompts = replace(prompts, ratio=_shares(runtime.data_ratio, len(prompts.datasets), "runtime.data_ratio"))
        if prompts.sampler is not None and prompts.ratio is not None:
            raise EngineError("set_sampler chooses among all data sets by itself: leave data_ratio out.")
        return prompts

    def open(self, deployment: Deployment, root: str) -> OpenPrompts:
        """Builds the data sets beside the module ``root``, for training."""
        runtime = deployment.config.runtime
        opened = [deployment.open_dataset(root, dataset, is_eval=False) for dataset in self.datasets]
        sampler = make_sampler(
            runtime.seed,
            [length for _, length in opened],
            group_size=runtime.num_inference_per_prompt,
            shuffle=runtime.data_shuffle,
            ratios=self.ratio,
            function=self.sampler,
        )
        return OpenPrompts(deployment, root, tuple(key for key, _ in opened), sampler)


@dataclass(frozen=True)
class OpenPrompts:
    """Data sets that have been built."""

    deployment: Deployment
    root: str
    keys: tuple[str, ...]
    sampler: PromptSampler

    @property
    def is_reranked(self) -> bool:
        """An episode's samples come in the order of their lengths: asked for by ``runtime.data_rerank``, or by the
        ``batch_generation.ranking`` of the module that takes them.
        """
        config = self.deployment.config
        return config.runtime.data_rerank or config.model(self.root).batch_generation.ranking

    def episode(self, position: int, size: int, weight_version: int) -> Iterator[tuple[Future, SampleIds]]:
        """The samples of one episode, batch by batch, and their ids.

        Args:
            position: the sampler's, of the first sample.
            size: samples per batch; the last batch may be smaller.
            weight_version: of the rollout weights.
        """
        count = self.deployment.config.runtime.sample_per_episode
        order = self._by_length(position, count, weight_version)
        for start in range(0, count, size):
            number = min(size, count - start)
            ids = (
                order.slice(start, start + number)
                if order
                else self.sampler.ids(position + start, number, weight_version)
            )
            yield self.deployment.fetch(self.root, self._picks(ids), position + start), ids

    def _by_length(self, position: int, count: int, weight_version: int) -> SampleIds | None:
        """The whole episode sorted by length, where that is asked for."""
        if not self.is_reranked:
            return None
        ids = self.sampler.ids(position, count, weight_version)
        lengths = self.deployment.lengths(self.root, self._picks(ids), position)
        return ids.take(reranked(lengths, ids.group_ids))

    def _picks(self, ids: SampleIds) -> list[tuple[str, int]]:
        return [(self.keys[number], index) for number, index in self.sampler.picks(ids)]


def _shares(ratio: Sequence[float] | None, count: int, name: str) -> tuple[float, ...] | None:
    if ratio is None:
        return None
    shares = [share for share in ratio if is_instance(share, (int, float)) and 0 < share < math.inf]
    if len(shares) != len(ratio) or len(shares) != count:
        raise EngineError(f"{name} is {list(ratio)}, but there are {count} data sets: give each a number above 0.")
    return tuple(map(float, shares))
