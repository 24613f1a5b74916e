"""Replay: experience of several episodes, from which a function of the user (or all of it) is trained on.

An episode stays in the batches in which it arrived. Its samples, one dict each, are made when somebody asks for them,
and what is chosen of them is merged to batches again.
"""

from __future__ import annotations

import bdb
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from chatlearn.data.plain import from_plain, to_plain
from chatlearn.data.samples import Kinds, Sample, batches, samples_of
from chatlearn.errors import ChatLearnError, DataError
from chatlearn.guards import is_list, is_mapping
from chatlearn.types import Batch, Column, SampleIds

__all__ = ["EpisodeBuffer", "ReplayBuffer", "Sample", "SampleFunction", "batches", "select"]

SampleFunction: TypeAlias = Callable[[list["EpisodeBuffer"]], list["Sample"]]
"""From the episodes that are kept, the oldest first, to the samples that are trained on, in their order."""


class EpisodeBuffer:
    """One episode's experience.

    Args:
        episode: its number, from 0.
        parts: batches in their order, each with the ids of its rows.
    """

    def __init__(self, episode: int, parts: Iterable[tuple[Batch, SampleIds]]) -> None:
        self.episode = episode
        self.parts: tuple[tuple[Batch, SampleIds], ...] = tuple(parts)

    @functools.cached_property
    def samples(self) -> list[Sample]:
        """One dict per sample: tensors and arrays without the batch dimension, entries of lists as they are, dicts of
        these. The dicts are your own; tensors are shared, so that nothing may be written into them.
        """
        return [sample for part in self.parts for sample in samples_of(self.episode, *part)]

    @property
    def sample_ids(self) -> list[int]:
        """The sampler's position of each sample."""
        return [i for _, ids in self.parts for i in ids.sample_ids]

    @property
    def group_ids(self) -> list[int]:
        """The group of each sample."""
        return [i for _, ids in self.parts for i in ids.group_ids]

    @property
    def weight_versions(self) -> list[int]:
        """Version of the rollout weights that made each sample."""
        return [ids.weight_version for _, ids in self.parts for _ in range(len(ids))]

    @property
    def buffer(self) -> list[Sample]:
        """The spelling of ChatLearn for :attr:`samples`."""
        return self.samples

    @property
    def episode_id(self) -> int:
        """The spelling of ChatLearn for :attr:`episode`."""
        return self.episode

    def __len__(self) -> int:
        return sum(len(ids) for _, ids in self.parts)

    def __repr__(self) -> str:
        return f"<episode {self.episode} with {len(self)} samples>"


class ReplayBuffer:
    """The latest episodes.

    Args:
        max_episodes: that are kept, the current one among them; 0 and 1 keep only that, -1 keeps all.
        offset: episodes of a run that are never replayed; until then only the current one is there.
    """

    def __init__(self, max_episodes: int, offset: int = 0) -> None:
        assert max_episodes >= -1, max_episodes
        assert offset >= 0, offset
        self.max_episodes, self.offset = max_episodes, offset
        self.episodes: list[EpisodeBuffer] = []

    def add(self, episode: EpisodeBuffer) -> None:
        """Takes the current episode and drops those that are not needed any more."""
        kept = self._replayable(self.episodes) if episode.episode >= self.offset else []
        self.episodes = [*kept, episode]

    def state(self) -> dict[str, Any]:
        """The episodes that a later one can replay, as dicts and lists of tensors, arrays of numbers, str, int, float,
        bool and None. Where only the current episode counts there are none.

        Raises:
            DataError: a list of a batch holds something else than these, tuples, bytes and arrays of any dtype.
        """
        return {"episodes": [_episode_state(episode) for episode in self._replayable(self.episodes)]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state` was taken."""
        self.episodes = [_episode_of(saved) for saved in state["episodes"]]

    def _replayable(self, episodes: Sequence[EpisodeBuffer]) -> list[EpisodeBuffer]:
        """The episodes that are kept when another one comes."""
        late = [episode for episode in episodes if episode.episode >= self.offset]
        return late if self.max_episodes == -1 else late[max(len(late) - max(self.max_episodes, 1) + 1, 0) :]


def select(buffers: Sequence[EpisodeBuffer], function: SampleFunction | None = None) -> list[Sample]:
    """The samples to train on.

    Args:
        buffers: the episodes that are kept, the oldest first.
        function: chooses among their samples; it may take a sample several times, leave some out, and give changed
            ones (``sample | {…}``). ``None`` takes all.

    Returns:
        Samples that all have the same keys.

    Raises:
        DataError: the function raises, writes into a tensor of the buffers, or gives something else than a list of
            such samples; the text names its file and line, and the place in the list.
    """
    fresh = [EpisodeBuffer(buffer.episode, buffer.parts) for buffer in buffers]  # whose dicts nobody else reads
    if function is None:
        samples: list[Sample] = [sample for buffer in fresh for sample in buffer.samples]
        where = "the episodes that are replayed"
    else:
        where = f"the replay sampling function {_described(function)}"
        samples = _called(function, fresh, where)
    _check_keys(samples, where)
    return samples


def _described(function: Callable[..., Any]) -> str:
    """Name and place of a function."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def _called(function: SampleFunction, buffers: list[EpisodeBuffer], where: str) -> list[Sample]:
    versions = [(name, episode, tensor, tensor._version) for name, episode, tensor in _tensors(buffers)]
    try:
        samples: Any = function(list(buffers))
    except bdb.BdbQuit:
        raise
    except Exception as error:
        cause = str(error) if isinstance(error, ChatLearnError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{where} raises {cause}") from error
    for name, episode, tensor, version in versions:
        if tensor._version != version:
            raise DataError(
                f"{where} writes into {name!r} of episode {episode}, which later episodes replay too. Give a sample "
                f'with a new tensor: sample | {{"{name}": …}}.'
            )
    if not is_list(samples):
        raise DataError(f"{where} returns {type(samples).__name__}. Return a list of samples of the buffers.")
    if not samples:
        raise DataError(
            f"{where} returns an empty list for {', '.join(map(repr, buffers)) or 'no episodes'}, so there is nothing "
            f"to train on. Return at least one sample."
        )
    for index, sample in enumerate(samples):
        if not isinstance(sample, Sample) or not hasattr(sample, "sample_id"):
            raise DataError(f"{where} returns a list whose item {index} is {_no_sample(sample)}")
        if odd := [key for key in _keys_of(sample, sample.kinds) if not isinstance(key, str)]:
            raise DataError(
                f"{where}: item {index} (sample {sample.sample_id} of episode {sample.episode}) has the key "
                f"{odd[0]!r}, but keys of samples are text. Give it the name {str(odd[0])!r}."
            )
    return samples


def _keys_of(values: Mapping[Any, Any], kinds: Kinds) -> Iterator[Any]:
    """The keys of a sample, those of the dicts that are columns of its batch included."""
    for key, value in values.items():
        yield key
        kind = kinds.get(key)
        if isinstance(kind, dict) and is_mapping(value):
            yield from _keys_of(value, kind)


def _no_sample(item: Any) -> str:
    if isinstance(item, dict):
        return (
            "a plain dict, so nobody knows which sample it is. Keep the sample and change columns by "
            'sample | {"rewards": …}; sample.copy() works too.'
        )
    if isinstance(item, EpisodeBuffer):
        return "an episode. Return its samples: [sample for episode in episodes for sample in episode.samples]."
    return f"{type(item).__name__}. Its items are samples of the buffers."


def _check_keys(samples: Sequence[Sample], where: str) -> None:
    for index, sample in enumerate(samples):
        if sample.keys() != samples[0].keys():
            odd = ", ".join(map(repr, sorted(map(str, sample.keys() ^ samples[0].keys()))))
            raise DataError(
                f"{where}: the samples have different keys: {odd} is not in all of them (item 0, sample "
                f"{samples[0].sample_id} of episode {samples[0].episode}, has {', '.join(samples[0])}; item {index}, "
                f"sample {sample.sample_id} of episode {sample.episode}, has {', '.join(sample)}). Give all the same "
                f"keys, or choose among samples that have them."
            )


def _tensors(buffers: Iterable[EpisodeBuffer]) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Tensors of the buffers that tell whether somebody wrote into them: (key, episode, tensor)."""
    for buffer in buffers:
        for batch, _ in buffer.parts:
            for key, tensor in _tensors_of(batch, ""):
                if not tensor.is_inference():
                    yield key, buffer.episode, tensor


def _tensors_of(batch: Batch, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    value: Column
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from _tensors_of(value, f"{path}{key}.")
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, torch.Tensor):
                yield path + key, tensor


def _episode_state(episode: EpisodeBuffer) -> dict[str, Any]:
    return {
        "episode": episode.episode,
        "parts": [
            {
                "columns": {key: to_plain(value, f"episode {episode.episode}: {key}") for key, value in batch.items()},
                "sample_ids": list(ids.sample_ids),
                "group_ids": list(ids.group_ids),
                "weight_version": ids.weight_version,
                "rollouts": None if ids.rollouts is None else list(ids.rollouts),
            }
            for batch, ids in episode.parts
        ],
    }


def _episode_of(state: Mapping[str, Any]) -> EpisodeBuffer:
    return EpisodeBuffer(
        state["episode"],
        [
            (
                {key: from_plain(value) for key, value in part["columns"].items()},
                SampleIds(
                    tuple(part["sample_ids"]),
                    tuple(part["group_ids"]),
                    part["weight_version"],
                    None if part["rollouts"] is None else tuple(part["rollouts"]),
                ),
            )
            for part in state["parts"]
        ],
    )
