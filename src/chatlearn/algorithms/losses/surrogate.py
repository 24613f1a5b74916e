"""What the policy losses share: ratios of probabilities, importance weights, metrics, the scalar of a batch."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from chatlearn.algorithms.losses.aggregation import Aggregation, aggregate
from chatlearn.algorithms.masking import as_float, check_same_shape

LossAndMetrics: TypeAlias = tuple[Tensor, dict[str, Tensor]]

MAX_LOG_RATIO = 80.0
"""Largest log-ratio to be exponentiated: exp overflows at 88, a clipped token's gradient is then 0 * inf."""


def exponentiate(log_ratio: Tensor) -> Tensor:
    """Ratio of probabilities, bounded where it would overflow."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def masked_log_ratio(logprobs: Tensor, old_logprobs: Tensor, valid: Tensor) -> Tensor:
    """``logprobs - old_logprobs``, 0 where not valid; differentiable in the first alone."""
    return torch.where(valid, as_float(logprobs) - as_float(old_logprobs.detach()), 0)


def masked_constant(x: Tensor, valid: Tensor) -> Tensor:
    """``x`` without gradient, 0 where not valid."""
    return torch.where(valid, as_float(x.detach()), 0)


def pessimistic(ratio: Tensor, cost: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """The larger of ``ratio * cost`` and the same with a clipped ratio, and where the clipped one is strictly larger.

    Args:
        ratio: of probabilities; differentiable.
        cost: negative advantages, same shape.
        clip_low: the lower bound is 1 less this.
        clip_high: the upper bound is 1 plus this.
    """
    unclipped = ratio * cost
    # Where the clipped term is the larger, the ratio is at its bound and the term has no gradient.
    clipped = ratio.detach().clamp(1 - clip_low, 1 + clip_high) * cost
    is_clipped = clipped > unclipped
    return torch.where(is_clipped, clipped, unclipped), is_clipped


def weighted(loss_BT: Tensor, weights: Tensor | None, valid: Tensor) -> Tensor:
    """The loss, of the shape of the log-probabilities, times constant weights, if there are any.

    Raises:
        ValueError: the shapes differ.
    """
    if weights is None:
        return loss_BT
    check_same_shape(logprobs=loss_BT, weights=weights)
    return loss_BT * masked_constant(weights, valid)


def token_metrics(is_clipped: Tensor, log_ratio: Tensor) -> dict[str, Tensor]:
    """``clip_frac`` and ``approx_kl`` of each token; both inputs are 0 where not valid."""
    log_ratio = log_ratio.detach()
    return {"clip_frac": is_clipped.to(log_ratio.dtype), "approx_kl": -log_ratio}


def of_batch(per_token: LossAndMetrics, mask: Tensor, aggregation: Aggregation) -> LossAndMetrics:
    """Loss and metrics of a batch from those of its tokens.

    Args:
        per_token: ``loss_BT``, and metrics that are 0 where not valid.
        mask: nonzero where the token counts.
        aggregation: of the loss; metrics are token means.

    Raises:
        ValueError: as :func:`~chatlearn.algorithms.losses.aggregate`.
    """
    loss_BT, metrics_BT = per_token
    valid = mask.bool()
    num_tokens = valid.sum().clamp(min=1)
    metrics = {name: metric_BT.sum() / num_tokens for name, metric_BT in metrics_BT.items()}
    return aggregate(loss_BT, valid, aggregation), metrics


def check_clip(clip_low: float, clip_high: float) -> None:
    """Raises a ``ValueError`` where a clip range is not legal."""
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low must lie in [0, 1], got {clip_low!r}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high must be at least 0, got {clip_high!r}")


def check_fields(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> None:
    """Raises a ``ValueError`` where the shapes differ."""
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)


def check_rows(mask: Tensor, loss: str) -> None:
    """Raises a ``ValueError`` where a loss that knows sequences doesn't get one in each row."""
    if mask.dim() != 2:
        raise ValueError(f"{loss} needs [B, T] with a sequence in each row, got shape {list(mask.shape)}")
