"""What an executor draws its samples from: one data set or several, in which order."""

from __future__ import annotations

import math
import numbers
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from chatlearn.config.schema import Config
from chatlearn.data.lengths import reranked
from chatlearn.data.sampler import PromptSampler, make_sampler
from chatlearn.data.sources import read_file, read_prompts
from chatlearn.engine.deployment import Deployment
from chatlearn.errors import ChatLearnError, DataError, EngineError
from chatlearn.guards import is_instance, is_mapping, is_sequence
from chatlearn.runtime.base import Future
from chatlearn.types import SampleIds

_Item = TypeVar("_Item")


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
            DataError: one is no data set; it is named.
        """
        parts = named_sources(sources, "set_multiple_datasets")
        shares = _shares(ratio, len(parts), "data_ratio")
        return replace(self, datasets=tuple(_read(name, part) for name, part in parts), ratio=shares)

    def over(self, other: Prompts) -> Prompts:
        """The same, with what the other says where this one says nothing."""
        if not self.datasets:
            return replace(other, sampler=self.sampler or other.sampler)
        return replace(self, sampler=self.sampler or other.sampler)

    def configured(self, config: Config) -> Prompts:
        """The same, with what the configuration says where the program says nothing.

        Raises:
            DataError: ``runtime.data_path`` names no readable files.
            EngineError: the shares don't fit, or stand beside a sampling function.
        """
        runtime, prompts = config.runtime, self
        if not prompts.datasets and runtime.data_path is not None:
            prompts = replace(prompts, datasets=_configured_files(runtime.data_path, _place(config, "data_path")))
        if prompts.ratio is None and runtime.data_ratio is not None and prompts.datasets:
            count, given = len(prompts.datasets), runtime.data_ratio
            ratio = [given] * count if isinstance(given, float) else given  # one number is an equal share for each
            shares = _shares(ratio, count, _place(config, "data_ratio"))
            prompts = replace(prompts, ratio=shares)
        if prompts.sampler is not None and prompts.ratio is not None:
            raise EngineError("set_sampler chooses among all data sets by itself: leave data_ratio out.")
        return prompts

    def open(self, deployment: Deployment, root: str) -> OpenPrompts:
        """Builds the data sets beside the module ``root``, for training.

        Raises:
            DataError: one can't be built; of several it is named by its number.
        """
        runtime = deployment.config.runtime
        opened = [self._open(deployment, root, number) for number in range(len(self.datasets))]
        sampler = make_sampler(
            runtime.seed,
            [length for _, length in opened],
            group_size=runtime.num_inference_per_prompt,
            shuffle=runtime.data_shuffle,
            ratios=self.ratio,
            function=self.sampler,
        )
        return OpenPrompts(deployment, root, tuple(key for key, _ in opened), sampler)

    def _open(self, deployment: Deployment, root: str, number: int) -> tuple[str, int]:
        try:
            return deployment.open_dataset(root, self.datasets[number], is_eval=False)
        except DataError as error:
            if len(self.datasets) == 1:
                raise
            raise DataError(f"data set {number}: {error}").with_traceback(error.__traceback__) from error.__cause__


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

    def episode(
        self, position: int, size: int, weight_version: int, count: int | None = None
    ) -> Iterator[tuple[Future, SampleIds]]:
        """The samples of one episode, or of one round of it, batch by batch, and their ids.

        Args:
            position: the sampler's, of the first sample.
            size: samples per batch; the last batch may be smaller.
            weight_version: of the rollout weights.
            count: of samples; ``None`` is ``runtime.sample_per_episode``.
        """
        count = count or self.deployment.config.runtime.sample_per_episode
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
        """The whole episode (or round) sorted by length, where that is asked for."""
        if not self.is_reranked:
            return None
        ids = self.sampler.ids(position, count, weight_version)
        lengths = self.deployment.lengths(self.root, self._picks(ids), position)
        return ids.take(reranked(lengths, ids.group_ids))

    def _picks(self, ids: SampleIds) -> list[tuple[str, int]]:
        return [(self.keys[number], index) for number, index in self.sampler.picks(ids)]


def ahead(items: Iterable[_Item], num: int) -> Iterator[_Item]:
    """The items in their order, each taken when ``num`` items before it are still to come out. What one raises is
    raised when its turn comes.
    """
    taken: deque[_Item] = deque()
    try:
        for item in items:
            taken.append(item)
            if len(taken) > num:
                yield taken.popleft()
    except ChatLearnError:
        yield from taken
        raise
    yield from taken


def named_sources(sources: Any, setter: str) -> list[tuple[str, Any]]:
    """Several data sets with their names: a list's are called ``0``, ``1``, ….

    Raises:
        EngineError: they are no list and no dict, or there are none; ``setter`` is named.
    """
    if isinstance(sources, (str, bytes)) or not is_instance(sources, (Mapping, Sequence)):
        raise EngineError(
            f"{setter} takes a list of data sets, or a dict of them, got {_shown(sources)}. Give a single one to "
            f"set_dataset."
        )
    if not sources:
        raise EngineError(f"{setter} got no data sets. Give a list of data sets, or a dict of them.")
    return [(str(name), sources[name]) for name in (sources if is_mapping(sources) else range(len(sources)))]


def _shown(value: object) -> str:
    return repr(value)[:60] if is_instance(value, (str, bytes, int, float)) else type(value).__name__


def _read(name: str, source: Any) -> Sequence[Any]:
    try:
        return read_prompts(source)
    except DataError as error:
        raise DataError(f"data set {name}: {error}").with_traceback(error.__traceback__) from error.__cause__


def _place(config: Config, key: str) -> str:
    """Where a key of ``runtime`` was set, and its path, for errors."""
    return f"{config.sources.get(f'runtime.{key}', '')}  runtime.{key}".strip()


def _configured_files(value: str | list[str], place: str) -> tuple[Sequence[Any], ...]:
    """The data sets of ``runtime.data_path``."""
    if not value:
        raise DataError(f"{place} names no files. Name one, or leave it out and call `set_dataset(prompts)`.")
    hint = "Name a file of prompts, a folder, or a pattern; a relative path begins where the program runs."
    try:
        return tuple(read_file(path, hint) for path in ([value] if isinstance(value, str) else value))
    except DataError as error:
        raise DataError(f"{place}: {error}").with_traceback(error.__traceback__) from error.__cause__


def _shares(ratio: Any, count: int, name: str) -> tuple[float, ...] | None:
    """Shares of data sets: a list, a tuple or an array of ``count`` positive numbers."""
    if ratio is None:
        return None
    given: Any = ratio.tolist() if hasattr(ratio, "tolist") else ratio
    if not is_sequence(given) or len(given) != count or not all(map(_is_share, given)):
        raise EngineError(f"{name} is {given!r}, but there are {count} data sets: give each a number above 0.")
    return tuple(map(float, given))


def _is_share(value: Any) -> bool:
    return is_instance(value, numbers.Real) and 0 < value < math.inf
