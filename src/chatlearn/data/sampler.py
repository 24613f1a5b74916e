"""Which samples an episode is made of: a pure function of (seed, length, group size, position)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from chatlearn.types import SampleIds


@dataclass(frozen=True)
class Sampler:
    """An endless sequence of samples over a data set of prompts, reshuffled in each epoch.

    Position p of the sequence belongs to group ``p // group_size``; groups walk through the prompts, epoch after epoch.
    The sampler holds no state: a run that goes on at position p sees what it would have seen.

    Attributes:
        seed: the run's.
        length: number of prompts.
        group_size: samples per prompt, one after another.
        shuffle: a new permutation for each epoch; without it prompts come in order.
    """

    seed: int
    length: int
    group_size: int = 1
    shuffle: bool = True

    def ids(self, position: int, count: int, weight_version: int = 0) -> SampleIds:
        """Ids of ``count`` samples from ``position`` on."""
        positions = range(position, position + count)
        return SampleIds(tuple(positions), tuple(p // self.group_size for p in positions), weight_version)

    def indices(self, ids: SampleIds) -> list[int]:
        """Index in the data set of each sample."""
        return [self._prompt(group) for group in ids.group_ids]

    def _prompt(self, group: int) -> int:
        epoch, place = divmod(group, self.length)
        return int(_permutation(self.seed, epoch, self.length)[place]) if self.shuffle else place


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(length)
