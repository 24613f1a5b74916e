"""Experience as it arrives, turned into global training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chatlearn.types import SampleIds


@dataclass(frozen=True)
class Experience:
    """One batch of experience: futures of dicts that are merged in order, and who the rows are.

    Attributes:
        sources: futures (or batches) with the same rows.
        ids: of the rows.
    """

    sources: tuple[Any, ...]
    ids: SampleIds


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
    (``dynamic``). Every sample comes exactly once per epoch; the last batch is smaller where the counts don't divide,
    never filled up. Both loaders give the same batches.

    Attributes:
        global_batch_size: samples per :class:`GlobalBatch`.
        shuffle_seed: seed of an epoch's order, by epoch; epoch 0 keeps the order of arrival.
        source: further experience, in batch order.
    """

    global_batch_size: int
    shuffle_seed: Callable[[int], int] = lambda epoch: epoch
    source: Iterator[Experience] = field(default_factory=lambda: iter(()))
    _experience: list[Experience] = field(default_factory=list)

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
            yield from self._as_they_arrive()
            return
        self.fill()
        places = [(i, row) for i, part in enumerate(self._experience) for row in range(len(part.ids))]
        order = np.random.Generator(np.random.Philox(key=self.shuffle_seed(epoch))).permutation(len(places))
        places = [places[i] for i in order]
        for start in range(0, len(places), self.global_batch_size):
            yield self._batch(places[start : start + self.global_batch_size])

    def _as_they_arrive(self) -> Iterator[GlobalBatch]:
        places: list[tuple[int, int]] = []
        for i, part in enumerate(self._arriving()):
            places += [(i, row) for row in range(len(part.ids))]
            while len(places) >= self.global_batch_size:
                yield self._batch(places[: self.global_batch_size])
                del places[: self.global_batch_size]
        if places:
            yield self._batch(places)

    def _arriving(self) -> Iterator[Experience]:
        yield from list(self._experience)
        for part in self.source:
            self._experience.append(part)
            yield part

    def _batch(self, places: Sequence[tuple[int, int]]) -> GlobalBatch:
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
