"""What the ready-made trainers share: the optimizer, its schedule, updates on minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from chatlearn.algorithms.losses import Aggregation, aggregate_count
from chatlearn.errors import ConfigError
from chatlearn.modules.torch.huggingface import ModelArgs
from chatlearn.types import Batch

T = TypeVar("T")


class TrainArgs(ModelArgs):
    """``models.<name>.args`` that every ready-made trainer has."""

    learning_rate: float = Field(gt=0, description="peak of the schedule")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="train steps of linear warm-up")
    decay_start: float = Field(0.0, ge=0, lt=1, description="share of all train steps before the decay sets in")
    min_learning_rate_ratio: float = Field(0.0, ge=0, le=1, description="end of the decay, as a share of the peak")
    betas: tuple[float, float] = Field((0.9, 0.95), description="of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    num_minibatches: int = Field(1, ge=1, description="optimizer updates per global batch")


def make_optimizer(model: torch.nn.Module, args: TrainArgs) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), fused."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=args.learning_rate, betas=args.betas, weight_decay=args.weight_decay, fused=True
    )


def learning_rate(args: TrainArgs, step: int, num_steps: int) -> float:
    """Learning rate of a train step: a pure function of its number, so that a resumed run has no schedule to restore.

    Args:
        args: peak, warm-up and decay.
        step: from 0.
        num_steps: of the run.
    """
    warmup = min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else 1.0
    begin = args.decay_start * num_steps
    progress = min(max((step + 1 - begin) / max(num_steps - begin, 1), 0.0), 1.0)
    remaining = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[args.schedule]
    return args.learning_rate * warmup * max(remaining, args.min_learning_rate_ratio)


def num_train_steps(runtime: Any) -> int:
    """Number of train steps of a run: episodes x epochs x global batches of an episode."""
    batches = -(-runtime.sample_per_episode // runtime.train_global_batch_size)
    return runtime.num_episode * runtime.num_training_epoch * batches


def check_num_minibatches(module: Any) -> None:
    """A minibatch has at least one micro-batch.

    Raises:
        ConfigError: the module's ``num_minibatches`` is larger than the number of micro-batches of a global batch.
    """
    num, runtime = module.model_args.num_minibatches, module.runtime_args
    if runtime is None:
        return
    available = -(-runtime.train_global_batch_size // runtime.train_micro_batch_size)
    if num > available:
        raise ConfigError(
            f"models.{module.name}.args.num_minibatches is {num}, but a global batch has {available} micro-batches "
            f"(train_global_batch_size {runtime.train_global_batch_size} / train_micro_batch_size "
            f"{runtime.train_micro_batch_size}). Lower it, or make train_micro_batch_size smaller."
        )


def minibatches(micro_batches: Sequence[T], num: int) -> Iterator[Sequence[T]]:
    """``num`` runs of neighbouring micro-batches, as even as they get; fewer where there are not enough."""
    num = min(num, len(micro_batches))
    bounds = [round(i * len(micro_batches) / num) for i in range(num + 1)]
    return (micro_batches[start:stop] for start, stop in pairwise(bounds))


def run_updates(
    module: Any,
    data: Sequence[Batch],
    iteration: int,
    sums: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
    *,
    aggregation: Aggregation = "token_mean",
    loss_name: str = "loss",
) -> None:
    """``num_minibatches`` updates on one global batch, each loss normalised over its minibatch.

    Logs the loss, ``grad_norm``, ``learning_rate`` and whatever ``sums`` gives, as means over tokens.

    Args:
        module: a trainer with ``model``, ``optimizer`` and :class:`TrainArgs`.
        data: the micro-batches, with ``response_mask``.
        iteration: number of the global batch; the learning rate depends on it.
        sums: micro-batch -> its loss before normalisation (0-d), and sums over its tokens of what is logged (0-d).
        aggregation: how token losses are normalised; see :func:`chatlearn.algorithms.losses.aggregate`.
        loss_name: the loss's metric.
    """
    args = module.model_args
    rate = learning_rate(args, iteration, num_train_steps(module.runtime_args))
    for group in module.optimizer.param_groups:
        group["lr"] = rate
    module.log("learning_rate", rate, "max")
    for minibatch in minibatches(data, args.num_minibatches):
        count = _count(module, minibatch, aggregation)
        totals: dict[str, Tensor] = {}
        for batch in minibatch:
            loss, metrics = sums(batch)
            (loss / count).backward()  # pyright: ignore[reportUnknownMemberType]  # torch leaves its types open
            for name, value in {loss_name: loss.detach(), **metrics}.items():
                totals[name] = totals[name] + value if name in totals else value
        num_tokens = count if aggregation == "token_mean" else _count(module, minibatch, "token_mean")
        for name, value in totals.items():
            module.log(name, module.all_reduce(value) / (count if name == loss_name else num_tokens))
        module.log("grad_norm", torch.nn.utils.clip_grad_norm_(module.model.parameters(), args.max_grad_norm))
        module.optimizer.step()
        module.optimizer.zero_grad(set_to_none=True)


def _count(module: Any, minibatch: Sequence[Batch], aggregation: Aggregation) -> Tensor:
    """What the sums over a minibatch are divided by."""
    counts = [aggregate_count(batch["response_mask"], aggregation) for batch in minibatch]
    return module.all_reduce(torch.stack(counts).sum()).clamp(min=1).to(module.device)
