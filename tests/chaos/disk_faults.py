"""A disk that is slow, full, or refuses; a writer without memory; a clock that jumps: in this process, from here on."""

from __future__ import annotations

import errno
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

from disk_calls import Call, DiskCalls


def inject(faults: dict[str, Any], folder: Path) -> None:
    """Makes this process's environment a bad one.

    Args:
        faults: by name:

            - ``slow``: seconds that each write and fsync of a checkpoint takes longer;
            - ``full``: bytes after which the disk has no more room for checkpoints; the write at hand is a short one;
            - ``no memory``: number of the write of a checkpoint at which there is no memory, from 1;
            - ``largest file``: bytes, beyond which a file can't grow, whoever writes it;
            - ``clock``: seed of a wall clock that jumps by up to three hours at each look.
        folder: of the checkpoints.
    """
    disk = _Disk(**{name.replace(" ", "_"): faults[name] for name in ("slow", "full", "no memory") if name in faults})
    DiskCalls(folder, disk.handle)
    if "largest file" in faults:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["largest file"], resource.RLIM_INFINITY))
    if "clock" in faults:
        jump(faults["clock"])


class _Disk:
    """Does calls badly."""

    def __init__(self, slow: float = 0.0, full: float = float("inf"), no_memory: int = 0) -> None:
        self._seconds, self._room, self._no_memory = slow, full, no_memory
        self._num_writes = 0

    def handle(self, call: Call) -> Any:
        """Does the call, or a part of it, or not."""
        if call.function in ("write", "fsync"):
            time.sleep(self._seconds)
        if call.function != "write":
            return call.do()
        self._num_writes += 1
        if self._num_writes == self._no_memory:
            raise MemoryError
        if self._room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = call.do(int(min(call.nbytes, self._room)))
        self._room -= written
        return written


def jump(seed: int) -> None:
    """Lets ``time.time`` jump back and forth by up to three hours at each look."""
    generator, real = random.Random(seed), time.time

    def clock() -> float:
        return real() + generator.uniform(-3, 3) * 3600

    time.time = clock
