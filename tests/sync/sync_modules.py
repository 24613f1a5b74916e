"""Modules whose weights are synced in tests, and functions that run beside them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import torch

from chatlearn import BaseModule
from chatlearn.sync import inlet, outlet
from chatlearn.sync.layout import make_buckets
from chatlearn.sync.transport import SyncView, plain_view


class Zoo(torch.nn.Module):
    """Weights of all kinds: larger than a bucket, of odd sizes, without dimensions, transposed, tied, whole numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.large = torch.nn.Parameter(torch.zeros(701, 513, dtype=dtype))
        self.wide = torch.nn.Parameter(torch.zeros(2, 300_001, dtype=dtype))
        self.odd = torch.nn.Parameter(torch.zeros(7, dtype=dtype))
        self.scalar = torch.nn.Parameter(torch.zeros((), dtype=dtype))
        self.turned = torch.nn.Parameter(torch.zeros(513, 301, dtype=dtype).t())
        self.tied = self.odd
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("flags", torch.zeros(3, 200_001, dtype=torch.bool))
        self.register_buffer("scratch", torch.ones(2), persistent=False)


class Keeper(BaseModule):
    """Holds a :class:`Zoo`."""

    def __init__(self, name: str, dtype: str = "float32") -> None:
        super().__init__(name)
        self.dtype = dtype

    def setup(self) -> None:
        self.model = Zoo(getattr(torch, self.dtype))

    def forward_step(self, data: Any) -> Any:
        return data


class Partly(Keeper):
    """Says that no step changes some of its weights, as a model with adapters does."""

    def sync_view(self, merged: bool = False) -> SyncView:
        return SyncView(plain_view(self).tensors, frozenset({"large", "odd", "tied", "steps"}))


def fill(module: Any, seed: int) -> None:
    """Gives all weights values that follow from the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64).mul(100))


def filled(seed: int, dtype: str = "float32", then: str | None = None) -> dict[str, str]:
    """What :func:`values` has to give after :func:`fill`, and after a cast."""

    class Held:
        model = Zoo(getattr(torch, dtype))

    fill(Held, seed)
    if then is not None:
        Held.model = Held.model.to(getattr(torch, then))
    return values(Held)


def values(module: Any) -> dict[str, str]:
    """All weights, each as the SHA-256 of its numbers row by row in float64."""
    state = module.model.state_dict()
    return {name: hashlib.sha256(value.double().contiguous().numpy()).hexdigest() for name, value in state.items()}


def numbers(module: Any, name: str) -> list[float]:
    """The different numbers of a parameter or buffer."""
    return sorted(set(getattr(module.model, name).flatten().tolist()))


def is_own_memory(module: Any) -> dict[str, bool]:
    """Whether a weight lies outside of shared memory."""
    regions = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "chatlearn-weights" in line:
            regions.append([int(bound, 16) for bound in line.split()[0].split("-")])
    return {
        name: not any(start <= value.data_ptr() < stop for start, stop in regions)
        for name, value in module.model.state_dict().items()
    }


def private_kib(module: Any) -> int:
    """Memory of shared regions that is this process's alone, in KiB."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = "chatlearn-weights" in line
        elif inside and line.startswith("Private_Dirty"):
            total += int(line.split()[1])
    return total


def inode(module: Any) -> set[str]:
    """Identities of the shared memory that is mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {" ".join(line.split()[3:5]) for line in lines if "chatlearn-weights" in line}


def scribble(module: Any, value: float) -> None:
    """Writes to a weight, as a module may."""
    with torch.no_grad():
        module.model.large.fill_(value)


def damage_memory(module: Any, name: str) -> None:
    """Lets the source turn over one bit of a tensor in shared memory after it has been summed."""
    (end,) = module.__dict__["_sync_outlets"].values()
    placed = next(placed for placed in end.pair.layout.tensors if placed.transfer.name == name)
    packed = outlet.Packer.packed
    buckets = end._buckets.all
    last = next(
        b for b in reversed(buckets) if any(p.tensor == end.pair.layout.tensors.index(placed) for p in b.pieces)
    )

    def only_then(self: Any, chosen: Any, memory: Any, base: int = 0) -> Any:
        for bucket, digests in zip(chosen, packed(self, chosen, memory, base), strict=True):
            if bucket is last:
                memory[placed.offset + placed.nbytes - 1] ^= 4
            yield digests

    outlet.Packer.packed = only_then


def damage_chunks(module: Any, name: str) -> None:
    """Turns over one bit of a tensor in what this module sends to other nodes."""
    pack = outlet.pack_chunk

    def damaged(packer: Any, buckets: Any, version: int, first: int) -> Any:
        chunk = pack(packer, buckets, version, first)
        for bucket in buckets:
            for piece in bucket.pieces:
                if packer._layout.tensors[piece.tensor].transfer.name == name:
                    chunk.data[piece.start - buckets[0].base] ^= 1
        return chunk

    outlet.pack_chunk = damaged


def break_packing(module: Any, how: str, bucket: int) -> None:
    """Lets the source fail, or its process end, when it comes to a bucket."""
    packed = outlet.Packer.packed

    def broken(self: Any, buckets: Any, memory: Any, base: int = 0) -> Any:
        for number, digests in enumerate(packed(self, buckets, memory, base)):
            if number == bucket:
                if how == "raise":
                    raise ValueError("no luck")
                os.kill(os.getpid(), signal.SIGKILL)
            yield digests

    outlet.Packer.packed = broken


def die_on_arrival(module: Any, bucket: int) -> None:
    """Lets a replica's process end when it comes to a bucket."""
    write, seen = inlet.Unpacker.write, []

    def dying(self: Any, *args: Any) -> None:
        seen.append(None)
        if len(seen) > bucket:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, *args)

    inlet.Unpacker.write = dying


def buckets(layout: Any) -> Any:
    """The buckets of a layout."""
    return make_buckets(layout).all


def hold_busy(module: Any, seconds: float) -> None:
    """A step that takes its time."""
    threading.Event().wait(seconds)


def descriptors(module: Any) -> int:
    """Open files of the process."""
    return len(os.listdir("/proc/self/fd"))


def values_after(module: Any, seconds: float) -> dict[str, str]:
    """A step that reads its weights late."""
    threading.Event().wait(seconds)
    return values(module)
