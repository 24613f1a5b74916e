"""Buckets of weights: packed from a module's tensors into memory, checked, and written from memory into another's.

The checksum is XXH3 with 64 bits over the bytes of each piece, taken while they are in the core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from chatlearn.errors import SyncError
from chatlearn.sync.layout import ALIGNMENT, Bucket, Buckets, Layout, Piece, dtype_of, make_buckets
from chatlearn.sync.transport import memory_of, view_of

DIGEST_BYTES = 8


@dataclass(frozen=True)
class Chunk:
    """Consecutive buckets on their way to another node.

    Attributes:
        version: of the weights.
        first: number of the first bucket.
        digests: of each bucket, the digests of its pieces.
        data: ``[n] uint8``, from :attr:`Bucket.base` of the first one on.
    """

    version: int
    first: int
    digests: tuple[bytes, ...]
    data: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Who sends to whom, for messages, and how.

    Attributes:
        key: tells pairs of one run apart.
        source: such as ``trainer[0]``.
        destination: name of the rollout module.
        layout: of what travels.
        merged: adapters of the source are merged into its weights.
        shares: replicas use shared memory itself as their weights, where they can.
    """

    key: str
    source: str
    destination: str
    layout: Layout
    merged: bool
    shares: bool


class Packer:
    """Reads a module's weights, as they are now, into memory.

    Args:
        module: the trained one.
        layout: of what travels.
        merged: adapters are merged into the weights.

    Raises:
        SyncError: a tensor has another shape than when the plan was made.
    """

    def __init__(self, module: Any, layout: Layout, merged: bool) -> None:
        view = view_of(module, merged)
        self._tensors = view.tensors
        self._layout = layout
        self._name = module.name
        on_gpu = any(tensor.is_cuda for tensor in (view.outlines or view.tensors).values())
        self._staging = Staging(layout.bucket_bytes + ALIGNMENT) if on_gpu else None
        self._open: dict[int, tuple[torch.Tensor, np.ndarray | None]] = {}

    def packed(self, buckets: Sequence[Bucket], memory: np.ndarray, base: int = 0) -> Iterator[bytes]:
        """Fills memory bucket by bucket; copies from a GPU are one bucket ahead.

        Args:
            buckets: in the order of memory.
            memory: ``[n] uint8``, to be written.
            base: the byte of the layout that is the first of ``memory``.

        Yields:
            The digests of the pieces of the bucket that is there now.
        """
        ahead = self._begin(buckets[0]) if buckets else None
        for number, bucket in enumerate(buckets):
            staged = ahead
            if number + 1 < len(buckets):
                ahead = self._begin(buckets[number + 1])
            yield self._pack(bucket, staged, memory, base)

    def _begin(self, bucket: Bucket) -> torch.Tensor | None:
        """Lets the copies of what is on a GPU begin."""
        if self._staging is None:
            return None
        devices: set[torch.device] = set()
        buffer = self._staging.take()
        for piece in bucket.pieces:
            tensor, _ = self._tensor(piece.tensor)
            if tensor.is_cuda:
                part = tensor[piece.index]
                target = _typed(buffer, piece, bucket.base, dtype_of(self._layout.tensors[piece.tensor].dtype))
                target.view(part.shape).copy_(part, non_blocking=True)
                devices.add(tensor.device)
        self._staging.give(devices)
        return buffer

    def _pack(self, bucket: Bucket, staged: torch.Tensor | None, memory: np.ndarray, base: int) -> bytes:
        digests: list[bytes] = []
        if staged is not None and self._staging is not None:
            self._staging.wait(staged)
        for piece in bucket.pieces:
            target = memory[piece.start - base : piece.start - base + piece.nbytes]
            tensor, flat = self._tensor(piece.tensor)
            if flat is not None:
                target[:] = flat[piece.first : piece.first + piece.nbytes]
            elif tensor.is_cuda and staged is not None:
                offset = piece.start - bucket.base
                target[:] = staged[offset : offset + piece.nbytes].numpy()
            else:
                part = tensor[piece.index]
                dtype = dtype_of(self._layout.tensors[piece.tensor].dtype)
                torch.frombuffer(target, dtype=dtype).view(part.shape).copy_(part)
            digests.append(_digest(target))
        last = bucket.pieces[-1].tensor
        self._open = {number: opened for number, opened in self._open.items() if number >= last}
        return b"".join(digests)

    def _tensor(self, number: int) -> tuple[torch.Tensor, np.ndarray | None]:
        """A slice that travels, and its bytes where they can be copied as they are. It is kept while pieces of it are
        to come, since some are computed when they are read.
        """
        if number not in self._open:
            placed = self._layout.tensors[number]
            tensor = self._tensors[placed.transfer.name].detach()[placed.transfer.source_slice]
            if tuple(tensor.shape) != placed.shape:
                raise SyncError(
                    f"{self._name}: {placed.transfer.name} is {list(tensor.shape)} now where the sync that was planned "
                    f"at the start sends {list(placed.shape)}. Keep the shapes of `self.model` after setup()."
                )
            self._open[number] = tensor, flat_bytes(tensor, placed.dtype)
        return self._open[number]


class Unpacker:
    """Checks what arrives and writes it into a replica's weights.

    Args:
        module: the replica's.
        pair: that it belongs to.
        version: of the weights.
        kept: numbers of tensors that are checked only.
    """

    def __init__(self, module: Any, pair: Pair, version: int, kept: frozenset[int] = frozenset()) -> None:
        self._pair = pair
        self._version = version
        self._kept = kept
        self._tensors: Mapping[str, torch.Tensor] = view_of(module).tensors
        self._replica = replica_of(module)
        on_gpu = any(tensor.is_cuda for tensor in self._tensors.values())
        self._staging = Staging(pair.layout.bucket_bytes + ALIGNMENT) if on_gpu else None
        self._open: dict[int, tuple[torch.Tensor, np.ndarray | None]] = {}

    def unpack(self, bucket: Bucket, digests: bytes, memory: np.ndarray, base: int = 0) -> None:
        """Copies one bucket into the model; on a GPU the copy may go on until :meth:`settle`.

        Raises:
            SyncError: a tensor is damaged, which is named by :meth:`damage`.
        """
        if (damaged := differing(bucket, digests, memory, base)) is not None:
            raise self.damage(damaged)
        self.write(bucket, memory, base)

    def write(self, bucket: Bucket, memory: np.ndarray, base: int = 0) -> None:
        """Copies a bucket that was checked."""
        buffer = None if self._staging is None else self._staging.take()
        devices: set[torch.device] = set()
        for piece in bucket.pieces:
            if piece.tensor in self._kept:
                continue
            tensor, flat = self._tensor(piece.tensor)
            data = memory[piece.start - base : piece.start - base + piece.nbytes]
            if flat is not None:
                flat[piece.first : piece.first + piece.nbytes] = data
                continue
            part = tensor[piece.index]
            dtype = dtype_of(self._pair.layout.tensors[piece.tensor].dtype)
            if tensor.is_cuda and buffer is not None:
                offset = piece.start - bucket.base
                buffer[offset : offset + piece.nbytes].numpy()[:] = data
                arrived = _typed(buffer, piece, bucket.base, dtype)
                devices.add(tensor.device)
            else:
                arrived = torch.frombuffer(data if data.flags.writeable else data.copy(), dtype=dtype)
            with torch.no_grad():
                part.copy_(arrived.view(part.shape), non_blocking=tensor.is_cuda)
        if self._staging is not None:
            self._staging.give(devices)

    def settle(self) -> None:
        """Waits for the copies to a GPU."""
        if self._staging is not None:
            self._staging.wait_all()

    def damage(self, piece: Piece) -> SyncError:
        """The error for a piece whose bytes are not those that were packed."""
        placed = self._pair.layout.tensors[piece.tensor]
        return SyncError(
            f"{self._pair.source} -> {self._replica}, version {self._version}: {placed.transfer.name} arrived damaged "
            f"(checksum of its bytes {piece.first} to {piece.first + piece.nbytes - 1}). The weights of "
            f"{self._replica} are incomplete now and must not be used; run again, and check the machine's memory and "
            f"network if it repeats."
        )

    def _tensor(self, number: int) -> tuple[torch.Tensor, np.ndarray | None]:
        if number not in self._open:
            placed = self._pair.layout.tensors[number]
            tensor = self._tensors[placed.transfer.name].detach()[placed.transfer.destination_slice]
            self._open[number] = tensor, flat_bytes(tensor, placed.dtype)
        return self._open[number]


class Staging:
    """Two page-locked buffers in host memory, which a GPU reads and writes by itself while the other one is used here.

    Args:
        nbytes: of each.
    """

    def __init__(self, nbytes: int) -> None:
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._events: list[list[Any]] = [[], []]
        self._turn = 0

    def take(self) -> torch.Tensor:
        """The buffer whose turn it is, once its copies have ended; :meth:`give` it back."""
        self._wait(self._turn)
        return self._buffers[self._turn]

    def give(self, devices: set[torch.device]) -> None:
        """Copies between the buffer that was taken and these devices have been started."""
        self._events[self._turn] = [torch.cuda.current_stream(device).record_event() for device in devices]
        self._turn = 1 - self._turn

    def wait(self, buffer: torch.Tensor) -> None:
        """Until the copies of one buffer have ended."""
        self._wait(0 if buffer is self._buffers[0] else 1)

    def wait_all(self) -> None:
        """Until all copies have ended."""
        self._wait(0)
        self._wait(1)

    def _wait(self, number: int) -> None:
        for event in self._events[number]:
            event.synchronize()
        self._events[number] = []


def differing(bucket: Bucket, digests: bytes, memory: np.ndarray, base: int = 0) -> Piece | None:
    """The first piece of a bucket whose bytes in memory don't have the digest that was sent, if there is one."""
    for number, piece in enumerate(bucket.pieces):
        data = memory[piece.start - base : piece.start - base + piece.nbytes]
        if _digest(data) != digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
            return piece
    return None


def pack_chunk(packer: Packer, buckets: Sequence[Bucket], version: int, first: int) -> Chunk:
    """Consecutive buckets in memory of their own; ``first`` is the number of the first."""
    base = buckets[0].base
    data = np.zeros(buckets[-1].stop - base, np.uint8)
    return Chunk(version, first, tuple(packer.packed(buckets, data, base)), data)


def flat_bytes(tensor: torch.Tensor, dtype: str) -> np.ndarray | None:
    """``[n] uint8``: the tensor's own memory, for as long as it lives, if it lies on the CPU row by row in the dtype
    that travels.
    """
    plain = tensor.device.type == "cpu" and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
    if not plain or str(tensor.dtype) != dtype:
        return None
    return memory_of(tensor)


def _digest(data: np.ndarray) -> bytes:
    return xxhash.xxh3_64_digest(data.data)


def buckets_of(pair: Pair) -> Buckets:
    """The buckets of what a pair sends."""
    return make_buckets(pair.layout)


def replica_of(module: Any) -> str:
    """``policy[1]``: the replica that a module is."""
    return f"{module.name}[{getattr(module, 'replica_id', 0)}]"


def _typed(buffer: torch.Tensor, piece: Piece, base: int, dtype: torch.dtype) -> torch.Tensor:
    """A piece's elements in a staging buffer that begins with the byte ``base``."""
    offset = piece.start - base
    return buffer[offset : offset + piece.nbytes].view(dtype)
