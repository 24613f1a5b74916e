"""What travels between modules: batches, the ids that go beside them, and the names of the token fields.

Shape legend, used as suffixes throughout: ``B`` samples, ``P`` prompt tokens, ``R`` response tokens, ``T = P + R``
tokens, ``V`` vocabulary. Every tensor of a batch has the samples in its first dimension.

Token fields of the ready-made modules:

===================  ==========================================================================================
``prompt``           list of B str
``tokens``           ``[B, T]`` int64; prompt left-padded, then the response, right-padded
``attention_mask``   ``[B, T]`` int64; 1 on every token that is not padding
``response_mask``    ``[B, T]`` float32; 1 on sampled tokens, the end-of-sequence token included
``logprobs``         ``[B, T]`` float32; log-probability of token t when it was sampled; position t belongs to token t
``ref_logprobs``     ``[B, T]`` float32; the same under the reference model
``values``           ``[B, T]`` float32; value of the state in which token t was chosen
``advantages``       ``[B, T]`` float32
``returns``          ``[B, T]`` float32
``rewards``          ``[B]`` float32; one per sample
``scored``           ``[B]`` bool; false where a sample could not be scored (its reward is 0)
``response``         list of B str
``finished``         ``[B]`` bool; the response ended by itself, not at the length limit
===================  ==========================================================================================

All ``[B, T]`` float fields are 0 outside of the response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch

Batch: TypeAlias = dict[str, Any]
"""``dict[str, Tensor | ndarray | list | nested dict of these]``, first dimension = samples."""

Column: TypeAlias = "torch.Tensor | np.ndarray | list[Any] | dict[str, Any] | None"
"""One value of a batch; ``None`` stands for the whole batch, and has no rows."""


@dataclass(frozen=True, slots=True)
class SampleIds:
    """Who the rows of a batch are; travels beside the batch, never in it.

    Attributes:
        sample_ids: the sampler's position of each row, unique over a run.
        group_ids: rows that answer the same prompt instance share one.
        weight_version: version of the rollout weights that made the rows (0 = before any sync).
        rollouts: of rows that a step has made of others, the sample id of the row at the start of the flow; ``None``
            where each row is a rollout of its own.
    """

    sample_ids: tuple[int, ...]
    group_ids: tuple[int, ...]
    weight_version: int = 0
    rollouts: tuple[int, ...] | None = None

    @property
    def rollout_ids(self) -> tuple[int, ...]:
        """Rows that were made of one sample share one; elsewhere it is the sample id."""
        return self.sample_ids if self.rollouts is None else self.rollouts

    def __len__(self) -> int:
        return len(self.sample_ids)

    def slice(self, start: int, stop: int) -> SampleIds:
        """Ids of the rows ``start`` to ``stop``."""
        return self.take(range(start, stop))

    def pieces(self, size: int) -> list[range]:
        """The rows cut into pieces of at most ``size`` that end where a group ends; a group that is larger than that
        is a piece of its own.
        """
        groups, count = self.group_ids, len(self.group_ids)
        ends = [0]
        while ends[-1] < count:
            start, stop = ends[-1], min(ends[-1] + size, count)
            while start < stop < count and groups[stop] == groups[stop - 1]:
                stop -= 1
            if stop == start:
                stop = next((row for row in range(start + size, count) if groups[row] != groups[row - 1]), count)
            ends.append(stop)
        return [range(start, stop) for start, stop in pairwise(ends)]

    def together(self) -> list[int] | None:
        """The rows in an order in which each group stands in one piece, where it was first; ``None`` where they do."""
        places: dict[int, list[int]] = {}
        for row, group in enumerate(self.group_ids):
            places.setdefault(group, []).append(row)
        order = [row for rows in places.values() for row in rows]
        return None if order == list(range(len(order))) else order

    def take(self, rows: Sequence[int]) -> SampleIds:
        """Ids of the given rows, in the given order."""
        return SampleIds(
            tuple([self.sample_ids[row] for row in rows]),
            tuple([self.group_ids[row] for row in rows]),
            self.weight_version,
            None if self.rollouts is None else tuple([self.rollouts[row] for row in rows]),
        )

    def expanded(self, source_rows: Sequence[int]) -> SampleIds:
        """Ids of new rows, each made of the row that is named: the group is that row's, the sample id new (its id times
        65,536 plus the number of the new row among its siblings), the rollout the row's own.
        """
        seen: dict[int, int] = {}
        numbers: list[int] = []
        taken = self.take(source_rows)
        for row in source_rows:
            numbers.append(seen.get(row, 0))
            seen[row] = numbers[-1] + 1
        return SampleIds(
            tuple([(parent << 16) + number for parent, number in zip(taken.sample_ids, numbers, strict=True)]),
            taken.group_ids,
            self.weight_version,
            taken.rollout_ids,
        )


def num_rows(batch: Mapping[str, Column]) -> int:
    """Number of samples of a batch, read from its first value that has rows (0 if none has)."""
    for value in batch.values():
        if value is not None and (rows := num_rows(value) if isinstance(value, dict) else len(value)):
            return rows
    return 0
