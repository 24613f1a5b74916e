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
from chatlearn.modules.torch.micro_batches import count_rows, regrouped
from chatlearn.modules.torch.preparation import (
    check_autocast,
    checkpoint_layers,
    compile_backbone,
    compile_seconds_logged,
    precision,
)
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
    packing: bool = Field(False, description="sequences of a micro-batch share lines instead of being padded")
    max_tokens_per_micro_batch: int | None = Field(
        None,
        ge=1,
        description="the rows of a minibatch go through the model in micro-batches of at most so many tokens (with "
        "packing: without padding); null: in the micro-batches of train_micro_batch_size",
    )
    gradient_checkpointing: bool = Field(
        False, description="layers keep only their inputs and are computed again in the backward pass: less memory"
    )
    autocast: Literal["bfloat16"] | None = Field(
        None, description="dtype of products in the forward pass; parameters, log-probabilities and losses keep theirs"
    )
    compile: bool = Field(False, description="torch.compile of the model without its output layer")


def make_optimizer(model: torch.nn.Module, args: TrainArgs) -> torch.optim.Optimizer:
    """Readies a model for training as its arguments say, and makes its optimizer.

    ``gradient_checkpointing`` and ``compile`` change how the model is computed, not what it holds.

    Returns:
        AdamW (Loshchilov and Hutter 2019), fused, over the parameters that need gradients.

    Raises:
        ConfigError: the model or the hardware can't do what the arguments ask for.
    """
    check_autocast(model, args.autocast)
    if args.gradient_checkpointing:
        checkpoint_layers(model)
    if args.compile:
        compile_backbone(model)
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
    max_length: int | None = None,
    loss_name: str = "loss",
    after_update: Callable[[], None] | None = None,
) -> None:
    """``num_minibatches`` updates on one global batch, each loss normalised over its minibatch.

    Logs the loss, ``grad_norm``, ``learning_rate`` and whatever ``sums`` gives, as means over tokens; with ``compile``
    also ``compile_seconds``.

    Args:
        module: a trainer with ``model``, ``optimizer`` and :class:`TrainArgs`.
        data: the micro-batches, with ``response_mask``.
        iteration: number of the global batch; the learning rate depends on it.
        sums: micro-batch -> its loss before normalisation (0-d), and sums over its tokens of what is logged (0-d).
        aggregation: how token losses are normalised; see :func:`chatlearn.algorithms.losses.aggregate`.
        max_length: the length of the aggregation ``constant``, which no other reads.
        loss_name: the loss's metric.
        after_update: called after each update.
    """
    args = module.model_args
    rate = learning_rate(args, iteration, num_train_steps(module.runtime_args))
    for group in module.optimizer.param_groups:
        group["lr"] = rate
    module.log("learning_rate", rate, "max")
    first_row = 0
    for minibatch in minibatches(data, args.num_minibatches):
        count = _count(module, minibatch, aggregation, max_length)
        totals: dict[str, Tensor] = {}
        with compile_seconds_logged(module, args.compile):
            for batch in _micro_batches(module, minibatch, first_row):
                with precision(module.device, args.autocast):
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
        if after_update is not None:
            after_update()
        first_row += count_rows(minibatch)


def _micro_batches(module: Any, minibatch: Sequence[Batch], first_row: int) -> Sequence[Batch]:
    """The micro-batches of a minibatch: those that came, or new ones under the token budget."""
    budget, packing = module.model_args.max_tokens_per_micro_batch, module.model_args.packing
    return minibatch if budget is None else regrouped(module, minibatch, first_row, budget, packing)


def _count(module: Any, minibatch: Sequence[Batch], aggregation: Aggregation, max_length: int | None = None) -> Tensor:
    """What the sums over a minibatch are divided by."""
    counts = [aggregate_count(batch["response_mask"], aggregation, max_length=max_length) for batch in minibatch]
    return module.all_reduce(torch.stack(counts).sum()).clamp(min=1).to(module.device)
