"""The trained module's end of a sync between processes: shared memory with the published weights, and a socket through
which replicas of the same machine get at it.

A thread of its own greets replicas, so that one that comes late, or takes the place of another, is given what is
published even while the module trains.

Functions with a module as their first argument run beside it (``Worker.apply``).
"""

from __future__ import annotations

import hmac
import os
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from chatlearn.errors import SyncError
from chatlearn.sync.buckets import Chunk, Packer, Pair, buckets_of, pack_chunk
from chatlearn.sync.segment import as_bytes, mapped, open_segment

Address = tuple[str, bytes]
"""Name of a socket, and the secret that a replica has to show."""

HELLO = struct.Struct("<16sQ?")
"""The secret, the ticket of the sync, and whether fixed tensors are wanted too."""

HEADER = struct.Struct("<cQI")
"""``H``, the version, and the number of the first bucket that comes."""

FAILED, READY = b"F", b"B"
"""First byte of a message: the source failed (its words follow), or a bucket is there (its digests follow)."""

_HELLO_SECONDS = 10.0
_ENDS = "_sync_outlets"


class Outlet:
    """What one module publishes to another one's replicas.

    Args:
        pair: that it belongs to.

    Attributes:
        address: of the socket.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.address: Address | None = None
        self._buckets = buckets_of(pair)
        self._digests = [b""] * len(self._buckets.all)
        self._lock = threading.Lock()
        self._ticket = self._version = self._first = self._ready = 0
        self._failure: str | None = None
        self._readers: list[socket.socket] = []
        self._waiting: list[tuple[socket.socket, int, bool]] = []

    def serve(self) -> Address:
        """Opens memory and socket; does nothing the second time."""
        if self.address is None:
            self._segment = open_segment(self.pair.layout.nbytes)
            self._memory = as_bytes(mapped(self._segment))
            self._listener, name = _listen()
            self.address = name, secrets.token_bytes(16)
            weakref.finalize(self, os.close, self._segment)
            threading.Thread(target=self._greet_all, name=f"sync of {self.pair.source}", daemon=True).start()
        return self.address

    def publish(self, module: Any, ticket: int, version: int, first: int) -> None:
        """Packs the module's weights, and tells the replicas that wait for each bucket as soon as it is there.

        Args:
            module: the trained one.
            ticket: counts the syncs of this pair.
            version: of the weights.
            first: number of the first bucket that has changed.
        """
        with self._lock:
            for stale in self._readers:
                stale.close()
            self._readers = []
            self._ticket, self._version, self._first, self._ready, self._failure = ticket, version, first, first, None
            waiting, self._waiting = self._waiting, []
            for reader, wanted, everything in waiting:
                self._answer(reader, wanted, everything)
        try:
            packer = Packer(module, self.pair.layout, self.pair.merged)
            for digests in packer.packed(self._buckets.all[first:], self._memory):
                with self._lock:
                    self._digests[self._ready] = digests
                    self._ready += 1
                    self._tell(READY + digests)
        except BaseException as error:
            with self._lock:
                self._failure = f"{type(error).__name__}: {error}"
                self._tell(FAILED + self._failure.encode())
                self._release()
            raise
        with self._lock:
            self._release()

    def chunk(self, module: Any, ticket: int, version: int, start: int, stop: int) -> Chunk:
        """The buckets from ``start`` up to ``stop``: as they were published, else as the module has them now."""
        buckets = self._buckets.all[start:stop]
        if self.address is None or self._ticket != ticket or self._failure is not None:
            return pack_chunk(Packer(module, self.pair.layout, self.pair.merged), buckets, version, start)
        data = self._memory[buckets[0].base : buckets[-1].stop].copy()
        return Chunk(version, start, tuple(self._digests[start:stop]), data)

    def close(self) -> None:
        """Lets go of replicas that wait; those that have mapped the memory keep it."""
        if self.address is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._listener.close()
        with self._lock:
            self._release()
            for reader, _, _ in self._waiting:
                reader.close()
            self._waiting = []

    def _greet_all(self) -> None:
        while True:
            try:
                reader, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                self._greet(reader)
            except (OSError, struct.error):  # it is gone already, or is none of ours
                reader.close()

    def _greet(self, reader: socket.socket) -> None:
        assert self.address is not None
        reader.settimeout(_HELLO_SECONDS)
        secret, ticket, everything = HELLO.unpack(reader.recv(HELLO.size, socket.MSG_WAITALL))
        if not hmac.compare_digest(secret, self.address[1]) or not _is_same_user(reader):
            reader.close()
            return
        reader.settimeout(None)
        with self._lock:
            self._answer(reader, ticket, everything)

    def _answer(self, reader: socket.socket, ticket: int, everything: bool) -> None:
        """Brings a replica up to the present bucket; with the lock held."""
        if ticket > self._ticket:
            self._waiting.append((reader, ticket, everything))
            return
        problem = self._failure
        if ticket < self._ticket:
            problem = f"version {self._version} has taken its place"
        first = 0 if everything else self._first
        try:
            if problem is not None:
                reader.sendall(FAILED + problem.encode())
                reader.close()
                return
            socket.send_fds(reader, [HEADER.pack(b"H", self._version, first)], [self._segment])
            reader.sendall(b"".join(READY + digests for digests in self._digests[first : self._ready]))
        except OSError:  # it has died
            reader.close()
            return
        if self._ready == len(self._digests):
            reader.close()
        else:
            self._readers.append(reader)

    def _tell(self, message: bytes) -> None:
        """Sends to all that read; one that has died is forgotten."""
        for reader in list(self._readers):
            try:
                reader.sendall(message)
            except OSError:
                self._readers.remove(reader)
                reader.close()

    def _release(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = []


def open_outlet(module: Any, pair: Pair, serve: bool) -> Address | None:
    """Makes the module's end of a pair, if it is not there.

    Args:
        module: the trained one.
        pair: what is sent to whom.
        serve: there are replicas on this machine.

    Returns:
        Where these find it.
    """
    ends: dict[tuple[str, str], Outlet] = module.__dict__.setdefault(_ENDS, {})
    names = pair.source, pair.destination
    if names in ends and ends[names].pair.key != pair.key:
        ends.pop(names).close()  # of an earlier run
    outlet = ends.setdefault(names, Outlet(pair))
    return outlet.serve() if serve else outlet.address


def send_weights(module: Any, names: tuple[str, str], ticket: int, version: int, first: int) -> int:
    """Publishes the module's weights to the replicas of this machine and returns their version; waits for none.

    Args:
        module: the trained one.
        names: of the pair: source and destination.
        ticket: counts the syncs of the pair.
        version: of the weights.
        first: number of the first bucket that is sent.
    """
    _outlet(module, names).publish(module, ticket, version, first)
    return version


def read_chunk(module: Any, names: tuple[str, str], ticket: int, version: int, start: int, stop: int) -> Chunk:
    """The buckets from ``start`` up to ``stop``, for replicas on other nodes; other arguments as for
    :func:`send_weights`.
    """
    return _outlet(module, names).chunk(module, ticket, version, start, stop)


def _outlet(module: Any, names: Sequence[str]) -> Outlet:
    return module.__dict__[_ENDS][tuple(names)]


def _listen() -> tuple[socket.socket, str]:
    """A socket of this machine. On Linux its name lies in no folder and goes away with the process."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = f"chatlearn-{secrets.token_hex(16)}"
    if sys.platform == "linux":
        listener.bind(f"\0{name}")
    else:
        folder = tempfile.mkdtemp(prefix="chatlearn-")  # others can't look into it
        weakref.finalize(listener, shutil.rmtree, folder, ignore_errors=True)
        name = os.path.join(folder, "weights")
        listener.bind(name)
    listener.listen(128)
    return listener, name


def socket_path(name: str) -> str:
    """The address of a socket by the name that a replica was given."""
    return f"\0{name}" if sys.platform == "linux" else name


def _is_same_user(reader: socket.socket) -> bool:
    if sys.platform != "linux":
        return True  # the folder is closed to others
    _, user, _ = struct.unpack("3i", reader.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user == os.geteuid()


def lost_source(pair: Pair, replica: str, version: int, what: str) -> SyncError:
    """The error of a replica that the source does not send to any more."""
    return SyncError(
        f"{pair.source} -> {replica}, version {version}: {what}. The weights of {replica} may be incomplete and must "
        f"not be used; look into the end of {pair.source}."
    )
