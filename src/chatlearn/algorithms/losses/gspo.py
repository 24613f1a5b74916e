"""Group sequence policy optimization: one ratio for a whole sequence."""

from __future__ import annotations

from torch import Tensor

from chatlearn.algorithms.losses.aggregation import Aggregation
from chatlearn.algorithms.losses.surrogate import (
    LossAndMetrics,
    check_clip,
    check_fields,
    check_rows,
    exponentiate,
    masked_constant,
    masked_log_ratio,
    of_batch,
    pessimistic,
    token_metrics,
    weighted,
)


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation = "seq_mean_mean",
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """GSPO's loss over one batch; :func:`gspo_loss_per_token` has formula and arguments.

    Args:
        aggregation: see :func:`~chatlearn.algorithms.losses.aggregate`; ``"constant"`` goes through the per-token
            function.

    Returns:
        The loss, and the metrics ``clip_frac`` and ``approx_kl``: masked token means whatever the
        aggregation, 0-d, detached.

    Raises:
        ValueError: as :func:`gspo_loss_per_token` and :func:`~chatlearn.algorithms.losses.aggregate`.
    """
    per_token = gspo_loss_per_token(
        logprobs, old_logprobs, advantages, mask, clip_low=clip_low, clip_high=clip_high, weights=weights
    )
    return of_batch(per_token, mask, aggregation)


def gspo_loss_per_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
) -> LossAndMetrics:
    """Clipped surrogate loss with the ratio of the sequence: Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7.

    For each sequence, with means over its n counting tokens::

        ratio = exp(mean(logprobs - old_logprobs)) = (p_new(sequence) / p_old(sequence)) ** (1 / n)
        loss  = max(-ratio * A, -clip(ratio, 1 - clip_low, 1 + clip_high) * A)      the same for all its tokens
        loss  = weights * loss                                                      if weights are given

    Its aggregation is ``seq_mean_mean``, which makes the loss of the batch the mean over sequences of eq. 5.

    Choices where implementations differ: the gradient is that of the formula, through the mean. So are TRL's
    (``importance_sampling_level="sequence"``); verl writes the ratio of each token as GSPO-token (eq. 14). Where
    all tokens of a sequence have one advantage, as all group estimators give, the gradients are the same. Where
    they differ, a token gets here the mean of its sequence's advantages, there its own. The log-ratio is not
    clamped but for overflow (at 80; verl: at 10).

    Args:
        logprobs: ``[B, T]`` with a sequence in each row, so packed rows have to be taken apart before; the only
            input that gets a gradient.
        old_logprobs: the same under the policy at the time of sampling.
        advantages: ``[B, T]``.
        mask: ``[B, T]``; nonzero where the token counts.
        clip_low: in [0, 1]. A sequence's ratio stays much closer to 1 than a token's: the paper has 3e-4.
        clip_high: at least 0; the paper has 4e-4.
        weights: ``[B, T]`` importance weights.

    Returns:
        ``loss_BT``, and the metrics of each token, as :func:`~chatlearn.algorithms.losses.policy_loss_per_token`:
        ``clip_frac`` is 1 on the tokens of sequences whose clipped term is strictly the larger loss.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``, or a constant is not legal.
    """
    check_fields(logprobs, old_logprobs, advantages, mask)
    check_rows(mask, "GSPO's loss")
    check_clip(clip_low, clip_high)
    valid = mask.bool()
    log_ratio = masked_log_ratio(logprobs, old_logprobs, valid)
    mean_log_ratio = log_ratio.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    cost = -masked_constant(advantages, valid)
    loss_BT, is_clipped = pessimistic(exponentiate(mean_log_ratio), cost, clip_low, clip_high)
    return weighted(loss_BT, weights, valid), token_metrics(is_clipped, log_ratio)
