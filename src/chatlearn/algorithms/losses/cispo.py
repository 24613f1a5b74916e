"""CISPO: clipped importance weights on REINFORCE, so that no token loses its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from chatlearn.algorithms.losses.aggregation import Aggregation
from chatlearn.algorithms.losses.surrogate import (
    LossAndMetrics,
    check_clip,
    check_fields,
    exponentiate,
    masked_constant,
    masked_log_ratio,
    of_batch,
    token_metrics,
    weighted,
)
from chatlearn.algorithms.masking import as_float


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation = "token_mean",
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """CISPO's loss over one batch; :func:`cispo_loss_per_token` has formula and arguments.

    Args:
        aggregation: see :func:`~chatlearn.algorithms.losses.aggregate`; ``"constant"`` goes through the per-token
            function.

    Returns:
        The loss, and the metrics ``clip_frac`` and ``approx_kl``: masked token means whatever the
        aggregation, 0-d, detached.

    Raises:
        ValueError: as :func:`cispo_loss_per_token` and :func:`~chatlearn.algorithms.losses.aggregate`.
    """
    per_token = cispo_loss_per_token(
        logprobs, old_logprobs, advantages, mask, clip_low=clip_low, clip_high=clip_high, weights=weights
    )
    return of_batch(per_token, mask, aggregation)


def cispo_loss_per_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """REINFORCE with clipped importance weights: MiniMax 2025, arXiv:2506.13585, eq. 4 and 5.

    With ``ratio = exp(logprobs - old_logprobs)``, which gets no gradient::

        loss = -clip(ratio, 1 - clip_low, 1 + clip_high) * A * logprobs
        loss = weights * loss                                              if weights are given

    A token whose ratio has left the range still has a gradient, with the weight of the bound. The value of the
    loss says little (it is large where log-probabilities are low): watch rewards and metrics.

    Choices where implementations differ: both bounds count, as in the paper and in verl (TRL: the upper one only,
    and its ``epsilon_high`` is the bound itself, where ours is its distance from 1); the log-ratio is not clamped
    but for overflow (at 80; verl: to [-20, 20]).

    Args:
        logprobs: ``[B, T]``; the only input that gets a gradient.
        old_logprobs: the same under the policy at the time of sampling.
        advantages: ``[B, T]``.
        mask: ``[B, T]``; nonzero where the token counts.
        clip_low: in [0, 1]. The paper leaves the ratio unbounded below, which is 1.
        clip_high: at least 0; infinity leaves the ratio unbounded above. The paper tunes it.
        weights: ``[B, T]`` importance weights.

    Returns:
        ``loss_BT``, and the metrics of each token, as :func:`~chatlearn.algorithms.losses.policy_loss_per_token`;
        there is no smaller of two terms here, so ``clip_frac`` is 1 where the ratio lies outside of the range.

    Raises:
        ValueError: the shapes differ, or a constant is not legal.
    """
    check_fields(logprobs, old_logprobs, advantages, mask)
    check_clip(clip_low, clip_high)
    valid = mask.bool()
    log_ratio = masked_log_ratio(logprobs, old_logprobs, valid)
    ratio = exponentiate(log_ratio.detach())
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    cost = -masked_constant(advantages, valid)
    loss_BT = clipped * cost * torch.where(valid, as_float(logprobs), 0)
    return weighted(loss_BT, weights, valid), token_metrics(clipped != ratio, log_ratio)
