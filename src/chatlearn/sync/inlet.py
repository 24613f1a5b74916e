"""A replica's end of a sync between processes.

Functions with a module as their first argument run beside it (``Worker.apply``).
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import Any

import numpy as np
import torch

from chatlearn.errors import SyncError
from chatlearn.sync.buckets import DIGEST_BYTES, Chunk, Pair, Unpacker, buckets_of, differing, replica_of
from chatlearn.sync.layout import Placed, dtype_of
from chatlearn.sync.outlet import FAILED, HEADER, HELLO, Address, lost_source, socket_path
from chatlearn.sync.segment import as_bytes, mapped
from chatlearn.sync.transport import view_of

_ENDS = "_sync_inlets"


class Inlet:
    """Where a replica gets the weights of one other module.

    Args:
        pair: that it belongs to.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._buckets = buckets_of(pair)
        self._memory = np.empty(0, np.uint8)
        self._identity: tuple[int, int] = (-1, -1)

    def receive(self, module: Any, address: Address, ticket: int, version: int, everything: bool) -> int:
        """Takes one version from shared memory, bucket by bucket as they come.

        Args:
            module: the replica's.
            address: of the source's end.
            ticket: which sync.
            version: of the weights that it publishes.
            everything: fixed tensors too, which later syncs leave out.

        Returns:
            The version.

        Raises:
            SyncError: the source failed or has ended, it sends another version, or a tensor is damaged.
        """
        replica = replica_of(module)
        with _connected(self.pair, replica, version, address, HELLO.pack(address[1], ticket, everything)) as sender:
            first, segment = self._header(sender, replica, version)
            try:
                self._map(segment)
                kept = self._shareable(module) if self.pair.shares else frozenset[int]()
                unpacker = Unpacker(module, self.pair, version, kept)
                for bucket in self._buckets.all[first:]:
                    digests = _message(self.pair, replica, version, sender, len(bucket.pieces) * DIGEST_BYTES)
                    damaged = differing(bucket, digests, self._memory)
                    if damaged is not None and kept:  # pages that the module itself has written to are its own
                        self._map(segment, anew=True)
                        damaged = differing(bucket, digests, self._memory)
                    if damaged is not None:
                        raise unpacker.damage(damaged)
                    unpacker.write(bucket, self._memory)
                unpacker.settle()
            finally:
                os.close(segment)
        if kept:
            self._share(module, kept)
        return version

    def write(self, module: Any, chunk: Chunk) -> int:
        """Takes some buckets that another node has sent; returns their version.

        Raises:
            SyncError: a tensor is damaged.
        """
        unpacker = Unpacker(module, self.pair, chunk.version)
        buckets = self._buckets.all[chunk.first : chunk.first + len(chunk.digests)]
        for bucket, digests in zip(buckets, chunk.digests, strict=True):
            unpacker.unpack(bucket, digests, chunk.data, buckets[0].base)
        unpacker.settle()
        return chunk.version

    def _header(self, sender: socket.socket, replica: str, version: int) -> tuple[int, int]:
        """Number of the first bucket that comes, and the shared memory's file descriptor."""
        try:
            data, segments, _, _ = socket.recv_fds(sender, HEADER.size, 1)
        except ConnectionResetError:
            data, segments = b"", list[int]()
        if data[:1] == FAILED or len(data) < HEADER.size or not segments:
            raise _failure(self.pair, replica, version, sender, data)
        _, sent, first = HEADER.unpack(data)
        if sent != version:
            os.close(segments[0])
            raise lost_source(self.pair, replica, version, f"{self.pair.source} sends version {sent}")
        return first, segments[0]

    def _map(self, segment: int, anew: bool = False) -> None:
        """Maps the shared memory, for itself: what this process writes there reaches nobody else."""
        status = os.fstat(segment)
        identity = status.st_dev, status.st_ino
        if anew or identity != self._identity:
            self._memory, self._identity = as_bytes(mapped(segment, private=True)), identity

    def _shareable(self, module: Any) -> frozenset[int]:
        """Numbers of the tensors for which shared memory itself can stand."""
        weights, slots = view_of(module).tensors, _slots(module)
        users = Counter(slot.untyped_storage().data_ptr() for slot in {id(s): s for s in slots.values()}.values())
        return frozenset(
            number
            for number, placed in enumerate(self.pair.layout.tensors)
            if (slot := slots.get(placed.transfer.name)) is not None
            and slot.data_ptr() == weights[placed.transfer.name].data_ptr()
            and users[slot.untyped_storage().data_ptr()] == 1
            and _fits(slot, placed)
        )

    def _share(self, module: Any, numbers: frozenset[int]) -> None:
        """Lets weights be the shared memory."""
        slots, start = _slots(module), self._memory.ctypes.data
        for number in numbers:
            placed = self.pair.layout.tensors[number]
            slot = slots[placed.transfer.name]
            if slot.data_ptr() != start + placed.offset:
                data = self._memory[placed.offset : placed.offset + placed.nbytes]
                slot.data = torch.frombuffer(data, dtype=dtype_of(placed.dtype)).view(placed.shape)


def open_inlet(module: Any, pair: Pair) -> None:
    """Makes the replica's end of a pair, in place of an earlier one."""
    module.__dict__.setdefault(_ENDS, {})[pair.source, pair.destination] = Inlet(pair)


def stand_by(module: Any) -> None:
    """Returns once all that was asked of the replica before is done: its weights may change now."""


def receive_weights(
    module: Any, names: tuple[str, str], address: Address, ticket: int, version: int, everything: bool
) -> int:
    """Takes what :func:`~chatlearn.sync.outlet.send_weights` publishes; see :meth:`Inlet.receive`."""
    return _inlet(module, names).receive(module, address, ticket, version, everything)


def write_chunk(module: Any, names: tuple[str, str], chunk: Chunk) -> int:
    """Takes what :func:`~chatlearn.sync.outlet.read_chunk` has read; see :meth:`Inlet.write`."""
    return _inlet(module, names).write(module, chunk)


def _inlet(module: Any, names: tuple[str, str]) -> Inlet:
    return module.__dict__[_ENDS][names]


def _slots(module: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers themselves, by all of their names."""
    model = getattr(module, "model", None)
    if not isinstance(model, torch.nn.Module):
        return {}
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _fits(slot: torch.Tensor, placed: Placed) -> bool:
    """Whether a tensor can be exchanged for memory with the same content: it is whole, plain and nobody's part."""
    return (
        slot.device.type == "cpu"
        and str(slot.dtype) == placed.dtype
        and tuple(slot.shape) == placed.shape
        and slot.is_contiguous()
        and slot.untyped_storage().nbytes() == placed.nbytes
        and not slot.is_inference()
    )


def _connected(pair: Pair, replica: str, version: int, address: Address, hello: bytes) -> socket.socket:
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sender.connect(socket_path(address[0]))
        sender.sendall(hello)
    except OSError as error:
        sender.close()
        raise lost_source(pair, replica, version, f"{pair.source} can't be reached any more ({error})") from error
    return sender


def _message(pair: Pair, replica: str, version: int, sender: socket.socket, nbytes: int) -> bytes:
    """The digests of one bucket, once it is there."""
    data = _exactly(sender, 1 + nbytes)
    if data[:1] == FAILED or len(data) <= nbytes:
        raise _failure(pair, replica, version, sender, data)
    return data[1:]


def _failure(pair: Pair, replica: str, version: int, sender: socket.socket, data: bytes) -> SyncError:
    """What the beginning of a message that is not the expected one says."""
    if data[:1] != FAILED:
        return lost_source(pair, replica, version, f"{pair.source} has ended while it sent")
    while part := _some(sender, 65536):
        data += part
    return lost_source(pair, replica, version, f"{pair.source} failed while it sent: {data[1:].decode()}")


def _exactly(sender: socket.socket, nbytes: int) -> bytes:
    """So many bytes; fewer, where the other side ends."""
    data = _some(sender, nbytes)
    while len(data) < nbytes and (part := _some(sender, nbytes - len(data))):
        data += part
    return data


def _some(sender: socket.socket, nbytes: int) -> bytes:
    try:
        return sender.recv(nbytes, socket.MSG_WAITALL)
    except ConnectionResetError:
        return b""
