"""SAPO: a smooth gate in the place of clipping."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chatlearn.algorithms.losses.aggregation import Aggregation
from chatlearn.algorithms.losses.surrogate import (
    LossAndMetrics,
    check_fields,
    exponentiate,
    masked_constant,
    masked_log_ratio,
    of_batch,
    token_metrics,
    weighted,
)


def sapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    aggregation: Aggregation = "seq_mean_mean",
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """SAPO's loss over one batch; :func:`sapo_loss_per_token` has formula and arguments.

    Args:
        aggregation: see :func:`~chatlearn.algorithms.losses.aggregate`; ``"constant"`` goes through the per-token
            function.

    Returns:
        The loss, and the metrics ``clip_frac``, ``approx_kl`` and ``gate``: masked token means whatever the
        aggregation, 0-d, detached.

    Raises:
        ValueError: as :func:`sapo_loss_per_token` and :func:`~chatlearn.algorithms.losses.aggregate`.
    """
    per_token = sapo_loss_per_token(
        logprobs, old_logprobs, advantages, mask, tau_pos=tau_pos, tau_neg=tau_neg, weights=weights
    )
    return of_batch(per_token, mask, aggregation)


def sapo_loss_per_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """Soft adaptive policy optimization: Gao et al. 2025, arXiv:2511.20347, eq. 5 and 6.

    With ``ratio = exp(logprobs - old_logprobs)`` and ``tau = tau_pos where A > 0, else tau_neg``::

        loss = -4 / tau * sigmoid(tau * (ratio - 1)) * A
        loss = weights * loss                                if weights are given

    The gradient of a token is that of ``-ratio * A`` times ``4 p (1 - p)`` with ``p = sigmoid(tau * (ratio - 1))``:
    1 at ratio 1, and less the further the ratio is off, never 0. A larger ``tau`` closes the gate sooner.

    Implementations differ in the clamp of the log-ratio only: verl clamps it to [-20, 20], here it is bounded
    where it would overflow (at 80).

    Args:
        logprobs: ``[B, T]``; the only input that gets a gradient.
        old_logprobs: the same under the policy at the time of sampling.
        advantages: ``[B, T]``.
        mask: ``[B, T]``; nonzero where the token counts.
        tau_pos: temperature of tokens with a positive advantage; finite, above 0.
        tau_neg: of the others.
        weights: ``[B, T]`` importance weights.

    Returns:
        ``loss_BT``, and the metrics of each token, as :func:`~chatlearn.algorithms.losses.policy_loss_per_token`.
        Nothing is clipped: ``clip_frac`` is 0, and ``gate`` is the weight ``4 p (1 - p)`` instead.

    Raises:
        ValueError: the shapes differ, or a constant is not legal.
    """
    check_fields(logprobs, old_logprobs, advantages, mask)
    for name, value in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    valid = mask.bool()
    log_ratio = masked_log_ratio(logprobs, old_logprobs, valid)
    cost = -masked_constant(advantages, valid)
    tau = torch.full_like(cost, tau_neg).masked_fill(cost < 0, tau_pos)
    opening = torch.sigmoid(tau * (exponentiate(log_ratio) - 1))
    loss_BT = 4 / tau * opening * cost
    metrics = token_metrics(torch.zeros_like(valid), log_ratio)
    metrics["gate"] = torch.where(valid, 4 * opening * (1 - opening), 0).detach()
    return weighted(loss_BT, weights, valid), metrics
