"""What modules offer to parameter sync, and how weights move inside of one process: read on the trained side, written
on the rollout side, checked on arrival.

The functions here run beside a module (``Worker.apply``); the first argument is the module.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from chatlearn.errors import SyncError
from chatlearn.sync.plan import Block, Held, Transfer


@dataclass(frozen=True)
class Published:
    """Weights on their way.

    Attributes:
        version: counts syncs, from 1.
        tensors: one per transfer, in the plan's order.
        digests: :func:`checksum` of each.
    """

    version: int
    tensors: list[torch.Tensor]
    digests: list[int]


@dataclass(frozen=True)
class SyncView:
    """What a module offers to parameter sync, in ``module.sync_view(merged)``.

    Attributes:
        tensors: by name; they share memory with the model, unless they are computed when they are read.
        fixed: names of those that no step changes.
        scales: layer -> factor of its adapter, where the model has adapters; both sides need the same.
        base: fingerprint of the fixed tensors, where the model has adapters.
        whole: layers that are trained whole beside adapters; both sides need the same.
        outlines: tensors of the same shapes and dtypes, where reading ``tensors`` computes them.
    """

    tensors: Mapping[str, torch.Tensor]
    fixed: frozenset[str] = frozenset()
    scales: Mapping[str, float] | None = None
    base: str = ""
    whole: frozenset[str] = frozenset()
    outlines: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Described:
    """A :class:`SyncView` without the tensors themselves, and what the module's section says about sync.

    Attributes:
        shares: replicas may use shared memory itself as their weights (``models.<name>.share_weights``).
        largest_chunk: bytes that are sent together at most (``runtime.coalesced_buffer_mb``).
    """

    held: dict[str, Held]
    fixed: frozenset[str]
    scales: dict[str, float] | None
    base: str
    whole: frozenset[str]
    shares: bool
    largest_chunk: int


def describe_view(module: Any, merged: bool = False) -> Described:
    """What a module offers to parameter sync: parameters and persistent buffers of ``module.model``, by default. A
    module without ``self.model`` offers nothing.
    """
    view = view_of(module, merged)
    held = {
        name: Held(tuple(t.shape), str(t.dtype), Block((0,) * t.ndim, tuple(t.shape)))
        for name, t in (view.outlines or view.tensors).items()
        if t.numel()
    }
    scales = None if view.scales is None else dict(view.scales)
    shares = getattr(getattr(module, "module_args", None), "share_weights", False)
    largest_chunk = getattr(getattr(module, "runtime_args", None), "coalesced_buffer_mb", 100) * 2**20
    return Described(held, view.fixed, scales, view.base, view.whole, shares, largest_chunk)


def describe_weights(module: Any) -> dict[str, Held]:
    """The tensors of :func:`describe_view`."""
    return describe_view(module).held


def read_weights(module: Any, transfers: list[Transfer], version: int, merged: bool = False) -> Published:
    """The slices that a plan sends. They share memory with the model; whoever carries them copies."""
    weights = view_of(module, merged).tensors
    tensors = [weights[transfer.name][transfer.source_slice].detach() for transfer in transfers]
    return Published(version, tensors, [checksum([tensor]) for tensor in tensors])


def write_weights(module: Any, transfers: list[Transfer], published: Published) -> int:
    """Copies slices into the model, with a cast where dtypes differ, and returns the version.

    Raises:
        SyncError: what arrived is not what was sent.
    """
    if len(published.tensors) != len(transfers):
        raise SyncError(
            f"{module.name}: {len(published.tensors)} tensors of version {published.version} arrived where "
            f"{len(transfers)} were planned. The rollout model is unchanged."
        )
    for transfer, tensor, digest in zip(transfers, published.tensors, published.digests, strict=True):
        if (arrived := checksum([tensor])) != digest:
            raise SyncError(
                f"{module.name}: {transfer.name} of version {published.version} arrived damaged (checksum "
                f"{arrived:016x}, sent {digest:016x}). The rollout model is unchanged; run again, and check the "
                f"machine's memory if it repeats."
            )
    weights = view_of(module).tensors
    with torch.no_grad():
        for transfer, tensor in zip(transfers, published.tensors, strict=True):
            weights[transfer.name][transfer.destination_slice].copy_(tensor)
    return published.version


def checksum(tensors: list[torch.Tensor]) -> int:
    """XXH3, 64 bits, over the bytes of all tensors, in order."""
    digest = xxhash.xxh3_64()
    for tensor in tensors:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(memory_of(plain).data)
    return digest.intdigest()


def memory_of(tensor: torch.Tensor) -> np.ndarray:
    """``[n] uint8``: the memory of a contiguous tensor on the CPU, for as long as the tensor lives. ``Tensor.numpy()``
    would make its storage one that can't be released any more.
    """
    memory: Any = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr())
    return np.ndarray((tensor.nbytes,), np.uint8, memory)


def plain_view(module: Any) -> SyncView:
    """All of ``module.model``, any of which may change."""
    model = getattr(module, "model", None)
    if not isinstance(model, torch.nn.Module):
        return SyncView({})
    return SyncView({name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)})


def view_of(module: Any, merged: bool = False) -> SyncView:
    """What a module offers; for ``merged`` see :meth:`chatlearn.modules.torch.TorchModule.sync_view`."""
    own: Callable[[bool], SyncView] | None = getattr(module, "sync_view", None)
    return plain_view(module) if own is None else own(merged)
