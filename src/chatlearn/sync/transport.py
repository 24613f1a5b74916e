"""How weights move: read on the trained side, carried by the cluster, written on the rollout side, checked on arrival.

The functions here run beside a module (``Worker.apply``); the first argument is the module.
"""

from __future__ import annotations

import zlib
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


def describe_weights(module: Any) -> dict[str, Held]:
    """What ``module.model`` holds: its parameters and persistent buffers. A module without ``self.model`` holds
    nothing.
    """
    return {
        name: Held(tuple(t.shape), str(t.dtype), Block((0,) * t.ndim, tuple(t.shape)))
        for name, t in _weights(module).items()
        if t.numel()
    }


def read_weights(module: Any, transfers: list[Transfer], version: int) -> Published:
    """The slices that a plan sends. They share memory with the model; whoever carries them copies."""
    weights = _weights(module)
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
    weights = _weights(module)
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


def _weights(module: Any) -> dict[str, torch.Tensor]:
    model = getattr(module, "model", None)
    if not isinstance(model, torch.nn.Module):
        return {}
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
