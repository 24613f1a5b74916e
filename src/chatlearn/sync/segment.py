"""Memory that several processes of one machine share, and that is gone when the last of them is."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import tempfile

import numpy as np

from chatlearn.errors import SyncError

_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def open_segment(nbytes: int) -> int:
    """A file descriptor of ``nbytes`` of zeros that no path leads to, so that nothing is left behind by whatever end of
    its processes. On Linux it lies in memory and can't be cut off under those who map it; elsewhere it is a file that
    is unlinked.

    Raises:
        SyncError: there is no room for it.
    """
    size = max(nbytes, 1)
    if sys.platform == "linux":
        fd = os.memfd_create("chatlearn-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile(prefix="chatlearn-weights-") as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
        if sys.platform == "linux":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in _SEALS))
    except OSError as error:
        os.close(fd)
        raise SyncError(
            f"{nbytes} bytes of shared memory for weights can't be had: {error}. Give the machine more memory."
        ) from error
    return fd


def mapped(fd: int, *, private: bool = False) -> mmap.mmap:
    """All bytes of a segment.

    Args:
        fd: of the segment; the caller may close it afterwards.
        private: what is written here stays here (copy on write): pages that were not written to show what the others
            write, as long as the mapping stands.
    """
    size = os.fstat(fd).st_size
    memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE if private else mmap.MAP_SHARED)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def as_bytes(memory: mmap.mmap) -> np.ndarray:
    """The mapping as ``[n] uint8``; it stays mapped for as long as any array or tensor of it lives."""
    return np.frombuffer(memory, np.uint8)
