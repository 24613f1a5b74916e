"""Where contents of tensors are while their own memory is given up: a file beside the CPU, pinned memory beside a GPU.

Both are stacks of buckets: the bucket that was put last comes back first, and its place is free at once.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

_PIECE_BYTES = 1 << 28
"""Bytes that go to the file in one system call; macOS takes less than 2**31."""


class HostMemory(Protocol):
    """A stack of buckets; ``contents`` are 1-d uint8 tensors over whole storages."""

    def put(self, contents: Sequence[Tensor]) -> None:
        """Copies a bucket and returns once the copy is complete."""
        ...

    def take(self, contents: Sequence[Tensor]) -> None:
        """Copies the bucket that was put last into tensors of the same sizes, and drops it."""
        ...


class FileMemory:
    """For tensors on the CPU: a temporary file that has no name, in the folder of ``TMPDIR``. The kernel keeps as much
    of it in memory as nobody else needs, and its disk space is free once the process has ended, however it ends.

    Raises:
        OSError: the file can't be made, or the disk is full.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # open as long as this object lives
        self._size = 0

    def put(self, contents: Sequence[Tensor]) -> None:
        """Copies a bucket to the end of the file."""
        self._file.seek(self._size)
        for content in contents:
            view = _view(content)
            while view:
                view = view[self._file.write(view[:_PIECE_BYTES]) :]
        self._size += _num_bytes(contents)

    def take(self, contents: Sequence[Tensor]) -> None:
        """Reads the last bucket and cuts it off the file."""
        start = self._size - _num_bytes(contents)
        self._file.seek(start)
        for content in contents:
            view = _view(content)
            while view:
                if not (count := self._file.readinto(view[:_PIECE_BYTES])):
                    raise OSError("a temporary file of offloaded tensors ends early")
                view = view[count:]
        self._file.truncate(start)
        self._size = start


class BufferMemory:
    """For tensors on a GPU: one buffer in host memory for each bucket.

    Args:
        pin: in page-locked memory, which the device reads and writes by itself. torch keeps such memory when it is free
            again, for the next buffers of the process.

    Raises:
        RuntimeError: there is no memory for a buffer.
    """

    def __init__(self, pin: bool = True) -> None:
        self._pin = pin
        self._buffers: list[Tensor] = []

    def put(self, contents: Sequence[Tensor]) -> None:
        """Copies a bucket into a new buffer."""
        buffer = torch.empty(_num_bytes(contents), dtype=torch.uint8, pin_memory=self._pin)
        for content, part in _parts(buffer, contents):
            part.copy_(content, non_blocking=True)
        _synchronize(contents)
        self._buffers.append(buffer)

    def take(self, contents: Sequence[Tensor]) -> None:
        """Copies the last buffer to the device, and drops it."""
        for content, part in _parts(self._buffers[-1], contents):
            content.copy_(part, non_blocking=True)
        _synchronize(contents)
        self._buffers.pop()


def return_freed_memory() -> None:
    """Gives memory that torch and the C library keep for later back to the device and to the system."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # glibc has it
        library.malloc_trim(0)


def _synchronize(contents: Sequence[Tensor]) -> None:
    for device in {content.device for content in contents if content.is_cuda}:
        torch.cuda.synchronize(device)


def _parts(buffer: Tensor, contents: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor of a bucket, and its part of the bucket's buffer."""
    start = 0
    for content in contents:
        yield content, buffer[start : start + len(content)]
        start += len(content)


def _num_bytes(contents: Sequence[Tensor]) -> int:
    return sum(len(content) for content in contents)


def _view(content: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU; not through numpy, which would keep its storage from ever being resized."""
    return memoryview((ctypes.c_char * len(content)).from_address(content.data_ptr())).cast("B")
