"""Which slice of which trained tensor goes where in the rollout model.

Both sides describe their weights as global tensors and the blocks of them that each rank holds. The plan is the
intersection of blocks, so any layout on either side is served by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from chatlearn.errors import SyncError


@dataclass(frozen=True)
class Block:
    """A rectangle of a global tensor.

    Attributes:
        offsets: first index in each dimension.
        sizes: extent in each dimension; together as many entries as the tensor has dimensions.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def intersect(self, other: Block) -> Block | None:
        """The rectangle that both have, or ``None``. Two blocks of a 0-d tensor are the same."""
        starts = tuple(map(max, self.offsets, other.offsets))
        stops = tuple(
            min(a + m, b + n) for a, m, b, n in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        )
        sizes = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
        return Block(starts, sizes) if all(size > 0 for size in sizes) else None

    def minus(self, other: Block) -> list[Block]:
        """What of this block lies outside of ``other``, which it contains, as blocks that don't overlap."""
        rest: list[Block] = []
        offsets, sizes = self.offsets, self.sizes
        for axis, (start, size) in enumerate(zip(other.offsets, other.sizes, strict=True)):
            end = offsets[axis] + sizes[axis]
            for first, last in ((offsets[axis], start), (start + size, end)):
                if last > first:
                    rest.append(Block(_with(offsets, axis, first), _with(sizes, axis, last - first)))
            offsets, sizes = _with(offsets, axis, start), _with(sizes, axis, size)
        return rest

    def within(self, other: Block) -> tuple[slice, ...]:
        """Where this block lies inside the local tensor of ``other``, which contains it."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.offsets, other.offsets, self.sizes, strict=True))


@dataclass(frozen=True)
class Held:
    """What one rank holds of one global tensor."""

    shape: tuple[int, ...]
    dtype: str
    block: Block


Table = Mapping[int, Mapping[str, Held]]
"""rank -> tensor name -> what the rank holds."""


@dataclass(frozen=True)
class Transfer:
    """One copy: a slice of the source rank's local tensor into a slice of the destination rank's."""

    name: str
    source_rank: int
    source_slice: tuple[slice, ...]
    destination_rank: int
    destination_slice: tuple[slice, ...]


@dataclass(frozen=True)
class SyncPlan:
    """All copies from one module to one replica of another.

    Attributes:
        source: name of the trained module.
        destination: name of the rollout module.
        transfers: in the order of the destination's tensors.
    """

    source: str
    destination: str
    transfers: tuple[Transfer, ...]

    def __bool__(self) -> bool:
        return bool(self.transfers)


def make_plan(source: str, source_table: Table, destination: str, destination_table: Table) -> SyncPlan:
    """Intersects the blocks of both sides.

    Args:
        source: name of the trained module.
        source_table: what its ranks hold.
        destination: name of the rollout module.
        destination_table: what the ranks of one of its replicas hold.

    Raises:
        SyncError: tensors that one side lacks or that differ in shape (all are listed), or elements that no source
            rank holds.
    """
    ours, theirs = _shapes(source_table), _shapes(destination_table)
    _check_same(source, ours, destination, theirs)
    transfers: list[Transfer] = []
    for rank, held in destination_table.items():
        for name, wanted in held.items():
            found, missing = _copies(name, wanted.block, rank, source_table)
            if missing:
                needed = math.prod(wanted.block.sizes)
                raise SyncError(
                    f"{source} -> {destination}: the ranks of {source} hold {needed - missing} of the {needed} "
                    f"elements of {name} that rank {rank} of {destination} needs."
                )
            transfers += found
    return SyncPlan(source, destination, tuple(transfers))


def _copies(name: str, wanted: Block, rank: int, table: Table) -> tuple[list[Transfer], int]:
    """The copies that fill a block, and how many elements no rank holds; of several that hold one, the first sends
    it.
    """
    copies: list[Transfer] = []
    missing = [wanted] if all(wanted.sizes) else []
    for source_rank, held in table.items():
        if name not in held:
            continue
        block = held[name].block
        rest: list[Block] = []
        for part in missing:
            if (common := block.intersect(part)) is None:
                rest.append(part)
                continue
            copies.append(Transfer(name, source_rank, common.within(block), rank, common.within(wanted)))
            rest += part.minus(common)
        missing = rest
    return copies, sum(math.prod(part.sizes) for part in missing)


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _shapes(table: Table) -> dict[str, tuple[int, ...]]:
    return {name: held.shape for tensors in table.values() for name, held in tensors.items()}


def _check_same(
    source: str, ours: dict[str, tuple[int, ...]], destination: str, theirs: dict[str, tuple[int, ...]]
) -> None:
    problems = [f"{name} {list(ours[name])} is missing in {destination}" for name in ours if name not in theirs]
    problems += [f"{name} {list(theirs[name])} is missing in {source}" for name in theirs if name not in ours]
    problems += [
        f"{name} is {list(ours[name])} in {source} and {list(theirs[name])} in {destination}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise SyncError(
            f"The weights of {source} do not fit {destination} (`self.model` on both sides; parameters and "
            f"persistent buffers):\n  {shown}\nBuild both from the same model folder or configuration."
        )
