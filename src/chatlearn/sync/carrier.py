"""How weights get from one process to others: through shared memory on the source's machine, and in chunks that the
cluster carries elsewhere. The driver says who sends and who receives; it holds no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from chatlearn.runtime.base import Cluster, Future, Handle
from chatlearn.sync.buckets import Pair, buckets_of
from chatlearn.sync.inlet import open_inlet, receive_weights, stand_by, write_chunk
from chatlearn.sync.outlet import Address, open_outlet, read_chunk, send_weights

Arrival = tuple[Handle, Future]
"""A replica, and the future of the version that it holds then."""


class Carrier:
    """Carries the weights of one pair, and keeps what was published last.

    Args:
        cluster: where both live.
        source: the trained module's replica.
        pair: what is sent to whom.
    """

    def __init__(self, cluster: Cluster, source: Handle, pair: Pair) -> None:
        self._cluster = cluster
        self._source = source
        self._pair = pair
        self._names = pair.source, pair.destination
        self._buckets = buckets_of(pair)
        self._address: Address | None = None
        self._has_outlet = False
        self._opened: set[Handle] = set()
        self._ticket = self._version = 0
        self._in_memory = 0  # ticket of what lies in shared memory
        self._in_chunks = 0
        self._chunks: dict[tuple[int, int], Future] = {}

    def begin(self, version: int, handles: Sequence[Handle], *, partial: bool) -> list[Arrival]:
        """Submits all calls of a sync, and waits for none of those that move weights.

        Args:
            version: of the weights.
            handles: replicas outside of the source's process.
            partial: they have the fixed tensors already.

        Returns:
            What to wait for: the source first, then all replicas.
        """
        near = [handle for handle in handles if self._is_near(handle)]
        far = [handle for handle in handles if handle not in near]
        self._open(near, far)
        if self._pair.shares:  # their weights change as soon as the source begins
            self._wait([self._apply(handle, stand_by) for handle in near])
        self._ticket, self._version = self._ticket + 1, version
        arrivals: list[Arrival] = []
        if near:  # replicas first, so that they wait already when the source begins
            first = self._buckets.num_fixed if partial and self._in_memory else 0
            received = [(handle, self._received(handle, self._ticket, everything=False)) for handle in near]
            sent = self._apply(self._source, send_weights, self._names, self._ticket, version, first)
            self._in_memory = self._ticket
            arrivals = [(self._source, sent), *received]
        if not far:
            self._chunks, self._in_chunks = {}, 0
        else:
            first = self._buckets.num_fixed if partial and self._in_chunks else 0
            moving = self._read(self._buckets.chunks(self._pair.layout.chunk_bytes, first))
            self._chunks = {**self._chunks, **moving}
            self._in_chunks = self._ticket
            for chunk in moving.values():  # chunk by chunk, since all replicas of a node share one that has come
                arrivals += [(handle, self._apply(handle, write_chunk, self._names, chunk)) for handle in far]
        return arrivals

    def restore(self, handle: Handle) -> None:
        """Gives a replica all of what was published last, and waits; does nothing where nothing was published.

        Raises:
            SyncError: what arrives is damaged.
            WorkerError: the source, or the replica, is gone.
        """
        self._opened.discard(handle)
        published = max(self._in_memory, self._in_chunks)
        if not published:
            return
        is_near = self._is_near(handle)
        self._open([handle] if is_near else [], [] if is_near else [handle])
        if is_near and self._in_memory == published:
            self._wait([self._received(handle, published, everything=True)])
            return
        chunks = self._chunks
        if self._in_chunks != published:
            chunks = self._read(self._buckets.chunks(self._pair.layout.chunk_bytes))
        self._wait([self._apply(handle, write_chunk, self._names, chunk) for chunk in chunks.values()])

    def _open(self, near: Sequence[Handle], far: Collection[Handle]) -> None:
        """Makes the ends that are not there yet; shared memory as soon as one replica is near."""
        if not self._has_outlet or (near and self._address is None):
            opened = self._apply(self._source, open_outlet, self._pair, bool(near) or self._address is not None)
            self._address = self._cluster.get(opened)
            self._has_outlet = True
        new = [handle for handle in (*near, *far) if handle not in self._opened]
        self._wait([self._apply(handle, open_inlet, self._pair) for handle in new])
        self._opened.update(new)

    def _is_near(self, handle: Handle) -> bool:
        return self._cluster.location(handle).node == self._cluster.location(self._source).node

    def _received(self, handle: Handle, ticket: int, *, everything: bool) -> Future:
        place = self._names, self._address, ticket, self._version
        return self._apply(handle, receive_weights, *place, everything)

    def _read(self, ranges: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Future]:
        place = self._names, self._ticket, self._version
        return {between: self._apply(self._source, read_chunk, *place, *between) for between in ranges}

    def _apply(self, handle: Handle, function: Callable[..., Any], *args: Any) -> Future:
        return self._cluster.call(handle, "apply", function, *args)

    def _wait(self, futures: Sequence[Future]) -> None:
        for future in futures:
            self._cluster.get(future)
