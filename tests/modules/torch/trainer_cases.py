"""Trainers whose gradients can be read, experience for them, and plain ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_models import Row, build, lay_out, plain_logprobs, plain_model, random_rows

from chatlearn.data.collate import select
from chatlearn.modules.torch import ValueTrainer
from chatlearn.types import Batch

NUM_ROWS = 9
RATE = 0.5
"""Of plain gradient descent, which makes the gradient of an update readable: (before - after) / RATE."""


def build_plain(cls: type, folder: str, **args: Any) -> Any:
    """A trainer whose updates are plain gradient descent without clipping."""
    module = build(cls, model_path=folder, learning_rate=RATE, **{"max_grad_norm": 1e9, **args})
    module.optimizer = torch.optim.SGD(module.model.parameters(), lr=RATE)
    if cls is ValueTrainer:
        with torch.no_grad():
            module.model.head.weight.normal_(generator=torch.Generator().manual_seed(3))
    return module


def parameters(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


def gradients(module: Any, data: list[Batch], iteration: int = 0) -> dict[str, torch.Tensor]:
    """What one train step changed, as the gradient that plain descent followed."""
    before = parameters(module)
    module.train_step(data, {"iteration": iteration})
    return {name: (before[name] - value) / RATE for name, value in parameters(module).items()}


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3, "the case should have a gradient"
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, atol=1e-5 * max(scale, 1), rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def make_columns(folder: str, rows: list[Row], seed: int = 0) -> dict[str, list[list[float]]]:
    """Experience whose policy was somewhat different, so that a good part of the ratios is clipped."""
    generator = torch.Generator().manual_seed(seed)
    model = plain_model(folder)
    columns: dict[str, list[list[float]]] = {
        name: [] for name in ("logprobs", "ref_logprobs", "advantages", "values", "returns")
    }
    for prompt, response in rows:
        with torch.no_grad():
            logprobs = plain_logprobs(model, prompt, response).float()
        noise = {name: torch.randn(len(response), generator=generator) for name in columns}
        columns["logprobs"].append((logprobs + 0.3 * noise["logprobs"]).tolist())
        columns["ref_logprobs"].append((logprobs + 0.3 * noise["ref_logprobs"]).tolist())
        for name in ("advantages", "values", "returns"):
            columns[name].append(noise[name].tolist())
    return columns


def make_batch(folder: str, padding: str = "both", seed: int = 0) -> Batch:
    rows = random_rows(NUM_ROWS, seed=seed)
    return lay_out(rows, padding, **make_columns(folder, rows, seed))


def cut(batch: Batch, *sizes: int) -> list[Batch]:
    """Micro-batches of these sizes."""
    assert sum(sizes) == NUM_ROWS
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [select(batch, range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def plain_gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters()}


def whitened(advantages: list[list[float]]) -> list[torch.Tensor]:
    flat = torch.tensor([a for row in advantages for a in row], dtype=torch.float64)
    mean, deviation = flat.mean(), (flat.var() + 1e-8).sqrt()
    return [(torch.tensor(row, dtype=torch.float64) - mean) / deviation for row in advantages]


AGGREGATIONS: dict[str, Callable[[list[torch.Tensor]], torch.Tensor]] = {
    "token_mean": lambda losses: torch.cat(losses).mean(),
    "seq_sum_mean": lambda losses: torch.stack([loss.sum() for loss in losses]).mean(),
    "seq_mean_mean": lambda losses: torch.stack([loss.mean() for loss in losses]).mean(),
}
