"""Small models of every kind of storage, trained with and without pauses in which their tensors are offloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from chatlearn import TorchModule

ALL = ("weights", "gradients", "optimizer")


class Network(torch.nn.Module):
    """Two tied layers, a transposed buffer, one that shows a part of a weight, counters and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(9, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.hidden = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("first_row", self.hidden.weight.detach()[0], persistent=False)
        self.register_buffer("turned", torch.randn(9, 2, 6).transpose(0, 2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.hidden(self.norm(self.embed(tokens))))
        return self.head(hidden) + self.first_row.sum() + self.turned[0, 0]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "adam-fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
}


def build_module(optimizer: str = "adam", device: str = "cpu", model: torch.nn.Module | None = None) -> TorchModule:
    """A module after ``setup``; equal arguments give equal ones."""
    module = TorchModule("trainer")
    torch.manual_seed(0)
    module.model = (model or Network()).to(device)
    if model is None and device != "cpu":  # moving to another device makes copies of what was shared
        module.model.head.weight = module.model.embed.weight
        module.model.first_row = module.model.hidden.weight.detach()[0]
    module.optimizer = OPTIMIZERS[optimizer]([p for p in module.model.parameters() if p.requires_grad])
    return module


def train(module: TorchModule, steps: int, pause: Callable[[], None] = lambda: None) -> None:
    """Steps on two batches each, with pauses between the batches too: gradients add up over them."""
    device = module.model.embed.weight.device
    for step in range(steps):

        def loss(step: int = step, half: int = 0) -> torch.Tensor:
            tokens = torch.tensor([(step + half + i * i) % 9 for i in range(5)], device=device)
            return torch.nn.functional.cross_entropy(module.model(tokens), tokens.roll(1))

        module.optimizer.zero_grad(set_to_none=True)
        loss().backward()
        pause()
        if isinstance(module.optimizer, torch.optim.LBFGS):
            module.optimizer.step(lambda: _again(module, loss))
        else:
            loss(half=1).backward()
            module.optimizer.step()
        pause()


def _again(module: TorchModule, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    module.optimizer.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    return value


def tensors(module: TorchModule) -> dict[str, torch.Tensor]:
    """Everything that a module holds: the tensors themselves."""
    named: dict[str, torch.Tensor] = {}
    for name, parameter in module.model.named_parameters(remove_duplicate=False):
        named[name] = parameter
        if parameter.grad is not None:
            named[f"{name}.grad"] = parameter.grad
    named |= dict(module.model.named_buffers())
    for number, state in enumerate(module.optimizer.state.values()):
        named |= {f"{number}.{key}": tensor for key, value in state.items() for tensor in _in(value)}
    return named


def _in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _in(part)


def copies(module: TorchModule) -> dict[str, torch.Tensor]:
    """What a module holds, as copies."""
    return {name: tensor.detach().clone() for name, tensor in tensors(module).items()}


def assert_same_bits(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].device == tensor.device, name
        bits = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (got[name], tensor)]
        assert torch.equal(*bits), name


def paused(module: TorchModule) -> Callable[[], None]:
    """A pause of a module in which it gives up everything."""

    device = module.model.embed.weight.device

    def pause() -> None:
        module.offload(ALL)
        assert sum(t.untyped_storage().nbytes() for t in tensors(module).values() if t.device == device) == 0
        module.onload(ALL)

    return pause
