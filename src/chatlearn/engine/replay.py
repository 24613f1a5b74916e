"""Training on experience of several episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from chatlearn.config.schema import RuntimeConfig
from chatlearn.data.replay import EpisodeBuffer, ReplayBuffer, SampleFunction, batches, select
from chatlearn.data.samples import Sample
from chatlearn.data.stream import Experience, StreamDataset
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.executor import in_driver
from chatlearn.runtime.seeding import derive_seed, seed_everything
from chatlearn.types import Batch, SampleIds


class Replay:
    """The kept episodes, and what is chosen of them.

    Args:
        runtime: ``max_replay_episode`` episodes are kept, from ``replay_episode_offset`` on.
        function: chooses the samples; ``None`` takes all that are kept.
    """

    def __init__(self, runtime: RuntimeConfig, function: SampleFunction | None) -> None:
        self._runtime, self._function = runtime, function
        self._buffer = ReplayBuffer(runtime.max_replay_episode, runtime.replay_episode_offset)

    def add(self, deployment: Deployment, episode: int, experience: StreamDataset) -> None:
        """Takes an episode's experience, which is complete, into the driver: a function of the user's may choose from
        it, and checkpoints hold it.
        """
        experience.fill()
        parts = [(in_driver(deployment, part.sources), part.ids) for part in experience.experience]
        self._buffer.add(EpisodeBuffer(episode, parts))

    def choose(self, deployment: Deployment, episode: int) -> Iterator[Experience]:
        """What is trained on after this episode.

        Raises:
            DataError: the user's function raises, or gives something else than samples.
        """
        seed_everything(derive_seed(self._runtime.seed, "replay", episode))
        parts = list(self._parts(deployment))
        number, size = len(self._buffer.episodes), sum(len(ids) for _, ids in parts)
        deployment.metrics.add([("replay/num_episodes", number, "sum", 1), ("replay/num_samples", size, "sum", 1)])
        for batch, ids in parts:
            yield Experience((deployment.cluster.put(batch),), ids)

    def _parts(self, deployment: Deployment) -> Iterator[tuple[Batch, SampleIds]]:
        if self._function is None:
            for episode in self._buffer.episodes:
                yield from episode.parts
            return
        samples = select(self._buffer.episodes, self._function)
        for piece in _whole_groups(samples, self._runtime.train_global_batch_size):
            yield from batches(piece, deployment.padding)

    def state(self) -> dict[str, Any]:
        """The episodes that later ones need, as a plain tree."""
        return self._buffer.state()

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state` was taken."""
        self._buffer.load(state)


def _whole_groups(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Pieces of at least ``size`` samples (but for the last) that end where a group ends."""
    piece: list[Sample] = []
    for _, group in groupby(samples, key=lambda sample: sample.group_id):
        piece += group
        if len(piece) >= size:
            yield piece
            piece = []
    if piece:
        yield piece
