"""Clipped surrogate loss of PPO, with two bounds (DAPO) and dual clip."""

from __future__ import annotations

import math

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
    pessimistic,
    token_metrics,
    weighted,
)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token_mean",
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """Clipped surrogate loss of PPO over one batch; :func:`policy_loss_per_token` has formula and arguments.

    Args:
        aggregation: see :func:`~chatlearn.algorithms.losses.aggregate`; ``"constant"`` needs a length and so goes
            through the per-token function.

    Returns:
        The loss, and the metrics ``clip_frac`` and ``approx_kl``: masked token means whatever the
        aggregation, 0-d, detached.

    Raises:
        ValueError: as :func:`policy_loss_per_token` and :func:`~chatlearn.algorithms.losses.aggregate`.
    """
    per_token = policy_loss_per_token(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        weights=weights,
    )
    return of_batch(per_token, mask, aggregation)


def policy_loss_per_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """Clipped surrogate loss of each token: the negative of Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    With ``ratio = exp(logprobs - old_logprobs)``::

        loss = max(-ratio * A, -clip(ratio, 1 - clip_low, 1 + clip_high) * A)
        loss = min(loss, -dual_clip * A)  where A < 0                            if dual_clip is given
        loss = weights * loss                                                    if weights are given

    Two bounds instead of PPO's one: "clip higher" of DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 8). Dual
    clip: Ye et al. 2020, arXiv:1912.09729, eq. 5. Choices where implementations differ: weights multiply
    after all clipping; the log-ratio is not clamped but for overflow (at 80; verl clamps it to [-20, 20]);
    dual clip is off unless asked for (verl: on, at 3); metrics ignore the weights.

    Args:
        logprobs: ``[B, T]``; log-probabilities of the sampled tokens under the policy in training. The only
            input that gets a gradient: the others are constants, so that ``old_logprobs=logprobs`` gives the
            on-policy gradient.
        old_logprobs: the same under the policy at the time of sampling (or before the first update).
        advantages: ``[B, T]``.
        mask: ``[B, T]``; nonzero where the token counts.
        clip_low: in [0, 1]; 1 leaves the ratio unbounded below.
        clip_high: at least 0; infinity leaves the ratio unbounded above.
        dual_clip: finite and above 1, or ``None``.
        weights: ``[B, T]`` importance weights, as of a rollout engine whose probabilities differ from the
            trainer's (:func:`~chatlearn.algorithms.importance.importance_weights`).

    Returns:
        ``loss_BT``, and the metrics of each token as detached ``[B, T]`` tensors; all are float32, or float64 if
        an input is, and 0 where masked, so that their sums add up over micro-batches. ``clip_frac`` is 1 where the
        clipped term is strictly the larger loss, dual clip aside; ``approx_kl`` is old less new log-probability,
        unclamped (the k1 estimate of KL(old || new)).

    Raises:
        ValueError: the shapes differ, or a constant is not legal.
    """
    check_fields(logprobs, old_logprobs, advantages, mask)
    check_clip(clip_low, clip_high)
    if dual_clip is not None and not 1 < dual_clip < math.inf:
        raise ValueError(f"dual_clip must be None or a finite number above 1, got {dual_clip!r}")
    valid = mask.bool()
    log_ratio = masked_log_ratio(logprobs, old_logprobs, valid)
    cost = -masked_constant(advantages, valid)
    loss_BT, is_clipped = pessimistic(exponentiate(log_ratio), cost, clip_low, clip_high)
    if dual_clip is not None:
        bound = dual_clip * cost
        loss_BT = torch.where((cost > 0) & (loss_BT > bound), bound, loss_BT)
    return weighted(loss_BT, weights, valid), token_metrics(is_clipped, log_ratio)
