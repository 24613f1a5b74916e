"""How weights lie in memory while they travel: tensor after tensor, cut into pieces, pieces gathered in buckets.

Pure arithmetic, the same on all sides, so that only names, shapes and dtypes have to be agreed on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from chatlearn.sync.plan import Held, Transfer

ALIGNMENT = 64
"""Bytes: tensors begin at multiples of it, so that any dtype can be read in place."""

PIECE_BYTES = 512 * 1024
"""A piece stays in a core's cache while it is packed and summed."""

BUCKET_BYTES = 2 * PIECE_BYTES
"""A bucket stays in the cores' common cache until it is read; each one wakes the readers once."""


@dataclass(frozen=True)
class Placed:
    """One transfer of the plan, in bytes.

    Attributes:
        transfer: of the plan.
        dtype: what travels, such as ``torch.bfloat16``.
        shape: of the slice that travels.
        offset: first byte.
    """

    transfer: Transfer
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the slice, row by row, without gaps."""
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """All that travels from one module to a replica of another.

    Attributes:
        tensors: in the order in which they lie in memory: first the fixed ones, which travel with the first sync only.
        num_fixed: how many these are.
        nbytes: of memory, the gaps between tensors included.
        bucket_bytes: upper bound of a bucket.
        chunk_bytes: upper bound of buckets that are sent to another node together.
    """

    tensors: tuple[Placed, ...]
    num_fixed: int
    nbytes: int
    bucket_bytes: int
    chunk_bytes: int


@dataclass(frozen=True)
class Piece:
    """A part of one slice that is without gaps in memory.

    Attributes:
        tensor: number of the slice in :attr:`Layout.tensors`.
        index: where it lies in the slice: whole numbers for the first dimensions, then one range.
        first: its first byte within the slice.
        nbytes: its size.
        start: its first byte in memory.
    """

    tensor: int
    index: tuple[int | slice, ...]
    first: int
    nbytes: int
    start: int


@dataclass(frozen=True)
class Bucket:
    """Pieces that travel together.

    Attributes:
        pieces: in the order of memory; never of fixed and of other tensors together.
    """

    pieces: tuple[Piece, ...]

    @property
    def start(self) -> int:
        """First byte in memory."""
        return self.pieces[0].start

    @property
    def base(self) -> int:
        """Where memory of its own begins, so that its pieces are aligned there too."""
        return self.start // ALIGNMENT * ALIGNMENT

    @property
    def stop(self) -> int:
        """The byte behind the last."""
        return self.pieces[-1].start + self.pieces[-1].nbytes


@dataclass(frozen=True)
class Buckets:
    """The buckets of a layout.

    Attributes:
        all: in the order of memory.
        num_fixed: how many of them, the first ones, hold fixed tensors.
    """

    all: tuple[Bucket, ...]
    num_fixed: int

    def chunks(self, chunk_bytes: int, first: int = 0) -> list[tuple[int, int]]:
        """Ranges of buckets, from number ``first`` on, that are sent to another node together; at least one bucket
        each, and never fixed and other ones.
        """
        chunks: list[tuple[int, int]] = []
        start = first
        for number in range(first, len(self.all)):
            if number > start and (
                number == self.num_fixed or self.all[number].stop - self.all[start].start > chunk_bytes
            ):
                chunks.append((start, number))
                start = number
        return [*chunks, (start, len(self.all))] if start < len(self.all) else chunks


def make_layout(
    transfers: Sequence[Transfer],
    source: Mapping[str, Held],
    destination: Mapping[str, Held],
    fixed: Collection[str] = (),
    *,
    widen: bool = False,
    largest_chunk: int = 100 * 2**20,
) -> Layout:
    """Places the transfers of a plan in memory.

    Where dtypes differ, the smaller one travels.

    Args:
        transfers: of a plan.
        source: what the trained module holds.
        destination: what a replica of the rollout module holds.
        fixed: names of the tensors that travel with the first sync only.
        widen: the destination's dtype travels in any case, so that it can use the memory itself.
        largest_chunk: bytes that are sent to another node together at most.
    """
    ordered = sorted(transfers, key=lambda transfer: transfer.name not in fixed)  # the order is kept otherwise
    placed: list[Placed] = []
    end = 0
    for transfer in ordered:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        ours, theirs = source[transfer.name].dtype, destination[transfer.name].dtype
        dtype = theirs if widen or dtype_of(theirs).itemsize <= dtype_of(ours).itemsize else ours
        shape = tuple(part.stop - part.start for part in transfer.destination_slice)
        placed.append(Placed(transfer, dtype, shape, offset))
        end = offset + placed[-1].nbytes
    num_fixed = sum(transfer.name in fixed for transfer in ordered)
    chunk_bytes = min(largest_chunk, max(end // 16, 2**20))  # enough chunks that one is packed while another travels
    return Layout(tuple(placed), num_fixed, end, min(BUCKET_BYTES, chunk_bytes), chunk_bytes)


def make_buckets(layout: Layout) -> Buckets:
    """Cuts all tensors and gathers the pieces."""
    buckets: list[Bucket] = []
    num_fixed = 0
    open_pieces: list[Piece] = []
    for number, tensor in enumerate(layout.tensors):
        if number == layout.num_fixed and open_pieces:
            buckets.append(Bucket(tuple(open_pieces)))
            open_pieces = []
        if number == layout.num_fixed:
            num_fixed = len(buckets)
        for piece in _pieces(number, tensor, min(layout.bucket_bytes, PIECE_BYTES)):
            if open_pieces and piece.start + piece.nbytes - open_pieces[0].start > layout.bucket_bytes:
                buckets.append(Bucket(tuple(open_pieces)))
                open_pieces = []
            open_pieces.append(piece)
    if open_pieces:
        buckets.append(Bucket(tuple(open_pieces)))
    return Buckets(tuple(buckets), num_fixed if layout.num_fixed < len(layout.tensors) else len(buckets))


def dtype_of(name: str) -> torch.dtype:
    """``torch.float32`` of its name."""
    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def _pieces(number: int, tensor: Placed, piece_bytes: int) -> Iterator[Piece]:
    """Cuts along the first dimension whose rows are small enough; dimensions before it are gone through one by one."""
    itemsize = dtype_of(tensor.dtype).itemsize
    if tensor.nbytes <= piece_bytes:
        yield Piece(number, (), 0, tensor.nbytes, tensor.offset)
        return
    axis, row = 0, tensor.nbytes
    while (row := row // tensor.shape[axis]) > piece_bytes:
        axis += 1
    assert row >= itemsize, "a single element fits into any piece"
    length, step = tensor.shape[axis], max(piece_bytes // row, 1)
    for outer in range(math.prod(tensor.shape[:axis])):
        prefix = _unravelled(outer, tensor.shape[:axis])
        for start in range(0, length, step):
            stop = min(start + step, length)
            first = (outer * length + start) * row
            yield Piece(number, (*prefix, slice(start, stop)), first, (stop - start) * row, tensor.offset + first)


def _unravelled(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index in each dimension of an element's number."""
    indices: list[int] = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        indices.append(rest)
    return tuple(reversed(indices))
