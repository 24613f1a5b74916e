"""Experience as it arrives, turned into global training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np

from chatlearn.types import SampleIds

_Place = tuple[int, int]
"""(number of the batch of experience, row in it)."""


@dataclass(frozen=True)
class Experience:
    """One batch of experience: what the flow yields, to be merged in order, and who the rows are.

    Attributes:
        sources: futures of batches (or the batches themselves) with the same rows; one that lies in several pieces is
            a tuple of :class:`~chatlearn.runtime.calls.Rows`.
        ids: of the rows.
        maker: handle of a replica that has made some of it; ``None`` where no step has.
    """

    sources: tuple[Any, ...]
    ids: SampleIds
    maker: Any = None


@dataclass(frozen=True)
class GlobalBatch:
    """Rows that one ``train_step`` gets.

    Attributes:
        pieces: (sources, rows) in order; ``rows`` is ``None`` where all of a batch is meant.
        ids: of all rows.
    """

    pieces: tuple[tuple[tuple[Any, ...], Sequence[int] | None], ...]
    ids: SampleIds


@dataclass
class StreamDataset:
    """An episode's experience, in batch order, as global batches.

    It holds references and row counts only, never rows. Experience is taken from ``source`` as it is asked for: by
    :meth:`fill` all at once (the loader ``fixed``), or by :meth:`batches` as far as the next global batch needs
    (``dynamic``). Every sample comes exactly once per epoch; a batch is smaller where the counts don't divide or a
    group would be split (larger only where it holds one group), never filled up. Both loaders give the same batches.

    Attributes:
        global_batch_size: samples per :class:`GlobalBatch`.
        shuffle_seed: seed of an epoch's order, by epoch; epoch 0 keeps the order of arrival.
        source: further experience, in batch order.
        shuffle_unit: samples that keep together where an epoch is shuffled: 1, or the size of a micro-batch.
    """

    global_batch_size: int
    shuffle_seed: Callable[[int], int] = lambda epoch: epoch
    source: Iterator[Experience] = field(default_factory=lambda: iter(()))
    shuffle_unit: int = 1
    _experience: list[Experience] = field(default_factory=list[Experience])

    def __len__(self) -> int:
        """Number of samples that have arrived."""
        return sum(len(part.ids) for part in self._experience)

    @property
    def experience(self) -> Sequence[Experience]:
        """The batches of experience that have arrived, in order."""
        return self._experience

    def add(self, experience: Experience) -> None:
        """Appends a batch of experience."""
        self._experience.append(experience)

    def fill(self) -> None:
        """Takes all experience there is; waits until it is complete."""
        self._experience.extend(self.source)

    def batches(self, epoch: int = 0) -> Iterator[GlobalBatch]:
        """The global batches of one training epoch; those of epoch 0 as soon as their samples have arrived."""
        if epoch == 0:
            yield from self._cut([(i, row) for row in range(len(part.ids))] for i, part in enumerate(self._arriving()))
        else:
            yield from self._cut(self._shuffled(epoch))

    def _cut(self, arriving: Iterable[list[_Place]]) -> Iterator[GlobalBatch]:
        """Global batches of what arrives, in that order; what arrives together begins and ends with a group."""
        places: list[_Place] = []
        for more in arriving:
            places += more
            while len(places) >= self.global_batch_size:
                yield self._batch(self._take_whole_groups(places))
        if places:
            yield self._batch(places)

    def _take_whole_groups(self, places: list[_Place]) -> list[_Place]:
        """Takes one global batch off the front. It ends with a group, and is as large as it can be; a group that is
        larger than a global batch is one of its own.
        """
        size = self.global_batch_size
        cuts = chain(range(size, 0, -1), range(size + 1, len(places)))
        end = next((cut for cut in cuts if self._is_group_end(places, cut)), len(places))
        taken = places[:end]
        del places[:end]
        return taken

    def _shuffled(self, epoch: int) -> list[list[_Place]]:
        """What is shuffled: the micro-batches (or samples) of epoch 0, or several where a group lies across them.

        Those at the end of an uneven batch keep to the end, so that micro-batches stay what they were.
        """
        whole: list[list[_Place]] = []
        ragged: list[list[_Place]] = []
        for batch in self._whole_batches():
            ends = range(self.shuffle_unit, len(batch), self.shuffle_unit)
            cuts = [0, *(end for end in ends if self._is_group_end(batch, end)), len(batch)]
            for start, end in pairwise(cuts):
                (ragged if (end - start) % self.shuffle_unit else whole).append(batch[start:end])
        order = np.random.Generator(np.random.Philox(key=self.shuffle_seed(epoch))).permutation(len(whole))
        return [*(whole[i] for i in order), *ragged]

    def _whole_batches(self) -> Iterator[list[_Place]]:
        """The places of the global batches of epoch 0."""
        self.fill()
        places = [(i, row) for i, part in enumerate(self._experience) for row in range(len(part.ids))]
        while len(places) >= self.global_batch_size:
            yield self._take_whole_groups(places)
        if places:
            yield places

    def _is_group_end(self, places: Sequence[_Place], cut: int) -> bool:
        """Whether no group lies across ``cut``."""
        if cut >= len(places):
            return True
        (part, row), (next_part, next_row) = places[cut - 1], places[cut]
        groups, next_groups = self._experience[part].ids.group_ids, self._experience[next_part].ids.group_ids
        return groups[row] != next_groups[next_row]

    def _arriving(self) -> Iterator[Experience]:
        yield from list(self._experience)
        for part in self.source:
            self._experience.append(part)
            yield part

    def _batch(self, places: Sequence[_Place]) -> GlobalBatch:
        """Runs of places in one batch become one piece; a run of neighbouring rows a range (a view, no copy)."""
        runs: list[tuple[int, list[int]]] = []
        for part, row in places:
            if runs and runs[-1][0] == part:
                runs[-1][1].append(row)
            else:
                runs.append((part, [row]))
        ids = [self._experience[part].ids.take(rows) for part, rows in runs]
        pieces = tuple((self._experience[part].sources, self._compact(part, rows)) for part, rows in runs)
        return GlobalBatch(
            pieces,
            SampleIds(
                tuple(i for part in ids for i in part.sample_ids),
                tuple(i for part in ids for i in part.group_ids),
                ids[0].weight_version,
                tuple(i for part in ids for i in part.rollout_ids) if ids[0].rollouts is not None else None,
            ),
        )

    def _compact(self, part: int, rows: list[int]) -> Sequence[int] | None:
        if rows == list(range(rows[0], rows[0] + len(rows))):
            whole = len(rows) == len(self._experience[part].ids)
            return None if whole else range(rows[0], rows[0] + len(rows))
        return rows
