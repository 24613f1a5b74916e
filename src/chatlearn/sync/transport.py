"""How weights move: read on the trained side, carried by the cluster, written on the rollout side, checked on arrival.

The functions here run beside a module (``Worker.apply``); the first argument is the module.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from chatlearn.errors import SyncError
from chatlearn.sync.plan import Block, Held, Transfer


@dataclass(frozen=True)
class Published:
    """Weights on their way.

    Attributes:
        version: counts syncs, from 1.
        tensors: one per transfer, in the plan's order.
        checksum: CRC-32 over the transported bytes.
    """

    version: int
    tensors: list[torch.Tensor]
    checksum: int


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
    """A :class:`SyncView` without the tensors themselves."""

    held: dict[str, Held]
    fixed: frozenset[str]
    scales: dict[str, float] | None
    base: str
    whole: frozenset[str]


def describe_view(module: Any, merged: bool = False) -> Described:
    """What a module offers to parameter sync: parameters and persistent buffers of ``module.model``, by default. A
    module without ``self.model`` offers nothing.
    """
    view = _view(module, merged)
    held = {
        name: Held(tuple(t.shape), str(t.dtype), Block((0,) * t.ndim, tuple(t.shape)))
        for name, t in (view.outlines or view.tensors).items()
        if t.numel()
    }
    return Described(held, view.fixed, None if view.scales is None else dict(view.scales), view.base, view.whole)


def describe_weights(module: Any) -> dict[str, Held]:
    """The tensors of :func:`describe_view`."""
    return describe_view(module).held


def read_weights(module: Any, transfers: list[Transfer], version: int, merged: bool = False) -> Published:
    """The slices that a plan sends. They share memory with the model; whoever carries them copies."""
    weights = _view(module, merged).tensors
    tensors = [weights[transfer.name][transfer.source_slice].detach() for transfer in transfers]
    return Published(version, tensors, checksum(tensors))


def write_weights(module: Any, transfers: list[Transfer], published: Published) -> int:
    """Copies slices into the model, with a cast where dtypes differ, and returns the version.

    Raises:
        SyncError: what arrived is not what was sent.
    """
    if (arrived := checksum(published.tensors)) != published.checksum:
        raise SyncError(
            f"{module.name}: the weights of version {published.version} arrived damaged (checksum {arrived:08x}, "
            f"sent {published.checksum:08x}). "
            f"The rollout model is unchanged; run again, and check the machine's memory and network if it repeats."
        )
    weights = _view(module).tensors
    with torch.no_grad():
        for transfer, tensor in zip(transfers, published.tensors, strict=True):
            weights[transfer.name][transfer.destination_slice].copy_(tensor)
    return published.version


def checksum(tensors: list[torch.Tensor]) -> int:
    """CRC-32 over the bytes of all tensors, in order."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def plain_view(module: Any) -> SyncView:
    """All of ``module.model``, any of which may change."""
    model = getattr(module, "model", None)
    if not isinstance(model, torch.nn.Module):
        return SyncView({})
    return SyncView({name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)})


def _view(module: Any, merged: bool = False) -> SyncView:
    own: Callable[[bool], SyncView] | None = getattr(module, "sync_view", None)
    return plain_view(module) if own is None else own(merged)
