"""Which samples an episode is made of: pure functions of (seed, lengths, group size, position)."""

from __future__ import annotations

import bdb
import math
import numbers
import operator
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np

from chatlearn.errors import DataError
from chatlearn.types import SampleIds

Pick = tuple[int, int]
"""(number of the data set, index in it)."""

SamplingFunction = Callable[[int, int, int], int]
"""A user's sampler: ``function(group, length, seed)`` gives the index of a group's prompt."""


class PromptSampler(Protocol):
    """An endless sequence of samples. Position p belongs to group ``p // group_size``; a group has one prompt.

    It holds no state: a run that goes on at position p sees what it would have seen.
    """

    def ids(self, position: int, count: int, weight_version: int = 0) -> SampleIds:
        """Ids of ``count`` samples from ``position`` on."""
        ...

    def picks(self, ids: SampleIds) -> list[Pick]:
        """Data set and index of each sample."""
        ...


@dataclass(frozen=True)
class Sampler:
    """One data set of prompts, reshuffled in each epoch.

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
        return _ids(position, count, self.group_size, weight_version)

    def indices(self, ids: SampleIds) -> list[int]:
        """Index in the data set of each sample."""
        return [_index(self.seed, 0, group, self.length, self.shuffle) for group in ids.group_ids]

    def picks(self, ids: SampleIds) -> list[Pick]:
        """Data set (always 0) and index of each sample."""
        return [(0, index) for index in self.indices(ids)]


@dataclass(frozen=True)
class MixedSampler:
    """Several data sets in given shares, each reshuffled in epochs of its own.

    The data sets take turns as evenly as their shares allow: of any number of groups from the start, each data set has
    its share, to within two groups.

    Attributes:
        seed: the run's.
        lengths: number of prompts of each data set.
        ratios: share of each data set, in any unit; ``None`` goes by the lengths, so that one pass over one data set is
            one pass over all.
        group_size: samples per prompt, one after another.
        shuffle: a new permutation for each epoch; without it prompts come in order.

    Raises:
        DataError: not one positive number per data set.
    """

    seed: int
    lengths: tuple[int, ...]
    ratios: tuple[float, ...] | None = None
    group_size: int = 1
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.ratios is not None and len(self.ratios) != len(self.lengths):
            raise DataError(
                f"data_ratio has {len(self.ratios)} numbers for {len(self.lengths)} data sets: {list(self.ratios)}. "
                f"Give one for each."
            )
        for ratio in self.ratios or ():
            if not isinstance(ratio, numbers.Real) or not 0 < ratio < math.inf:
                raise DataError(f"data_ratio: a share is a number above 0, got {ratio!r} in {list(self.ratios or ())}.")

    def ids(self, position: int, count: int, weight_version: int = 0) -> SampleIds:
        """Ids of ``count`` samples from ``position`` on."""
        return _ids(position, count, self.group_size, weight_version)

    def picks(self, ids: SampleIds) -> list[Pick]:
        """Data set and index of each sample."""
        found = {group: self._pick(group) for group in dict.fromkeys(ids.group_ids)}
        return [found[group] for group in ids.group_ids]

    def _pick(self, group: int) -> Pick:
        dataset, ordinal = self._turn(group)
        return dataset, _index(self.seed, dataset, ordinal, self.lengths[dataset], self.shuffle)

    def _turn(self, group: int) -> tuple[int, int]:
        """The data set whose turn a group is, and how many turns it had before.

        Data sets are halved until one is left. Of the first n groups of a range, the left half has n times its share,
        rounded: whose turn it is follows from n and n + 1, with no walk over the groups before.
        """
        sums, first, last, ordinal = self._sums, 0, len(self.lengths), group
        while last - first > 1:
            middle = (first + last) // 2
            left, whole = sums[middle] - sums[first], sums[last] - sums[first]
            before = (2 * ordinal * left + whole) // (2 * whole)
            if (2 * (ordinal + 1) * left + whole) // (2 * whole) > before:
                last, ordinal = middle, before
            else:
                first, ordinal = middle, ordinal - before
        return first, ordinal

    @cached_property
    def _sums(self) -> list[int]:
        """Running sums of the shares as whole numbers, from 0 on."""
        # a ratio counts as the decimal number that was written, so that 0.7 is 7/10
        shares = [Fraction(str(ratio)) for ratio in self.ratios or self.lengths]
        unit = math.lcm(*(share.denominator for share in shares))
        return [0, *accumulate(int(share * unit) for share in shares)]


@dataclass(frozen=True)
class CustomSampler:
    """Prompts chosen by a user's function; several data sets count as one, one after another.

    Attributes:
        function: a pure function of group number, number of prompts and run seed that gives an index. It is called
            again for the same group whenever a run is resumed.
        seed: the run's.
        lengths: number of prompts of each data set.
        group_size: samples per prompt, one after another.
    """

    function: SamplingFunction
    seed: int
    lengths: tuple[int, ...]
    group_size: int = 1

    def ids(self, position: int, count: int, weight_version: int = 0) -> SampleIds:
        """Ids of ``count`` samples from ``position`` on."""
        return _ids(position, count, self.group_size, weight_version)

    def picks(self, ids: SampleIds) -> list[Pick]:
        """Data set and index of each sample.

        Raises:
            DataError: the function raises, or gives no index of a prompt.
        """
        found = {group: self._pick(group) for group in dict.fromkeys(ids.group_ids)}
        return [found[group] for group in ids.group_ids]

    def _pick(self, group: int) -> Pick:
        starts = [0, *accumulate(self.lengths)]
        index = self._call(group, starts[-1])
        dataset = bisect_right(starts, index) - 1
        return dataset, index - starts[dataset]

    def _call(self, group: int, length: int) -> int:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        try:
            value = self.function(group, length, self.seed)
        except bdb.BdbQuit:
            raise
        except Exception as error:
            raise DataError(
                f"the sampler {name}(group={group}, length={length}, seed={self.seed}) raises "
                f"{type(error).__name__}: {error}"
            ).with_traceback(error.__traceback__) from error
        try:
            index = operator.index(value)
        except TypeError:
            index = -1
        if not 0 <= index < length or isinstance(value, bool):
            raise DataError(
                f"the sampler {name} gives {value!r} for group {group}; an index of the {length} prompts is a whole "
                f"number from 0 to {length - 1}."
            )
        return index


def make_sampler(
    seed: int,
    lengths: Sequence[int],
    *,
    group_size: int = 1,
    shuffle: bool = True,
    ratios: Sequence[float] | None = None,
    function: SamplingFunction | None = None,
) -> PromptSampler:
    """The sampler over one or several data sets.

    Raises:
        DataError: ratios that don't belong to the data sets, or beside a function.
    """
    if function is not None and ratios is not None:
        raise DataError("a sampling function chooses among all data sets by itself: leave data_ratio out.")
    if function is not None:
        return CustomSampler(function, seed, tuple(lengths), group_size)
    if len(lengths) == 1 and ratios is None:
        return Sampler(seed, lengths[0], group_size, shuffle)
    return MixedSampler(seed, tuple(lengths), None if ratios is None else tuple(ratios), group_size, shuffle)


def _ids(position: int, count: int, group_size: int, weight_version: int) -> SampleIds:
    positions = range(position, position + count)
    return SampleIds(tuple(positions), tuple([p // group_size for p in positions]), weight_version)


def _index(seed: int, dataset: int, ordinal: int, length: int, shuffle: bool) -> int:
    """The prompt of a data set's turn number ``ordinal``."""
    epoch, place = divmod(ordinal, length)
    return int(_epochs(seed, dataset, length).permutation(epoch)[place]) if shuffle else place


class _Epochs:
    """The permutations of one data set, by epoch; the latest is kept, so memory stays flat."""

    def __init__(self, seed: int, dataset: int, length: int) -> None:
        self._seed, self._dataset, self._length = seed, dataset, length
        self._latest: tuple[int, np.ndarray] = (-1, np.empty(0))

    def permutation(self, epoch: int) -> np.ndarray:
        known, permutation = self._latest
        if known != epoch:
            # data sets differ in the counter's highest word, which no permutation ever reaches by counting
            bits = np.random.Philox(key=[self._seed, epoch], counter=[0, 0, 0, self._dataset])
            permutation = np.random.Generator(bits).permutation(self._length)
            self._latest = (epoch, permutation)
        return permutation


@lru_cache(maxsize=256)
def _epochs(seed: int, dataset: int, length: int) -> _Epochs:
    return _Epochs(seed, dataset, length)
