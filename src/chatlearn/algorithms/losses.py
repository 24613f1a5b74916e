"""Losses: per token, and aggregated to a scalar.

Shape legend: ``B`` samples, ``T`` tokens; position t of a ``[B, T]`` tensor belongs to token t. A mask is
nonzero where a token counts; whatever stands elsewhere, NaN included, reaches neither loss nor gradient. Half
precision is computed in float32. Nothing here waits for the device: metrics are detached tensors.

Two levels, so that a minibatch can be trained in micro-batches or on several ranks:

- ``policy_loss`` and ``value_loss`` give the scalar of the batch that they are called with.
- ``policy_loss_per_token`` and ``value_loss_per_token`` give ``[B, T]``. :func:`aggregate_sum` and
  :func:`aggregate_count` are numerator and denominator of :func:`aggregate`. Each of them *adds up* over
  micro-batches and ranks; means do not. So a trainer writes ::

    count = all_reduce(aggregate_count(minibatch_mask, mode)).clamp(min=1)
    for micro in micro_batches:
        loss_BT, metrics_BT = policy_loss_per_token(...)
        (aggregate_sum(loss_BT, micro_mask, mode) / count).backward()

  and the sum of the gradients over micro-batches and ranks is that of the whole minibatch, however it was
  split. (Where ranks *average* gradients, as DDP and FSDP do by default, multiply by the number of ranks.)
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float, check_same_shape

Aggregation: TypeAlias = Literal["token_mean", "seq_sum_mean", "seq_mean_mean", "constant"]

MAX_LOG_RATIO = 80.0
"""Largest log-ratio to be exponentiated: exp overflows at 88, a clipped token's gradient is then 0 * inf."""


def aggregate(loss_BT: Tensor, mask_BT: Tensor, mode: Aggregation, *, max_length: int | None = None) -> Tensor:
    """Reduce per-token losses to a scalar; 0 if no token counts.

    - ``token_mean``: sum over tokens / number of tokens; every token weighs the same (DAPO, Yu et al. 2025,
      arXiv:2503.14476, eq. 8).
    - ``seq_sum_mean``: sum over the tokens of a sequence, mean over sequences (REINFORCE on whole responses).
    - ``seq_mean_mean``: mean over the tokens of a sequence, mean over sequences (GRPO, Shao et al. 2024,
      arXiv:2402.03300, eq. 3).
    - ``constant``: sum over tokens / (B * ``max_length``); lengths play no part (Dr. GRPO, Liu et al. 2025,
      arXiv:2503.20783).

    Implementations differ on rows without a counting token. Here they are padding: the mean over sequences
    passes them by. ``constant`` divides by all B rows.

    Args:
        loss_BT: per-token losses. ``token_mean`` takes any shape (packed rows).
        mask_BT: same shape; nonzero where the token counts.
        mode: one of the above.
        max_length: read by ``constant`` only; above 0.

    Returns:
        0-d tensor.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``, the mode is unknown, or ``constant`` lacks a
            legal ``max_length``.
    """
    count = aggregate_count(mask_BT, mode, max_length=max_length)
    return aggregate_sum(loss_BT, mask_BT, mode) / count.clamp(min=1)


def aggregate_sum(loss_BT: Tensor, mask_BT: Tensor, mode: Aggregation) -> Tensor:
    """Numerator of :func:`aggregate`. Adds up over micro-batches and ranks.

    Returns:
        0-d tensor: the sum over tokens, for ``seq_mean_mean`` the sum over sequences of the mean over tokens.

    Raises:
        ValueError: as :func:`aggregate`.
    """
    check_same_shape(loss_BT=loss_BT, mask_BT=mask_BT)
    _check_mode(mask_BT, mode)
    valid = mask_BT.bool()
    loss_BT = torch.where(valid, as_float(loss_BT), 0)
    if mode == "seq_mean_mean":
        return (loss_BT.sum(1) / valid.sum(1).clamp(min=1)).sum()
    return loss_BT.sum()


def aggregate_count(mask_BT: Tensor, mode: Aggregation, *, max_length: int | None = None) -> Tensor:
    """Denominator of :func:`aggregate`. Adds up over micro-batches and ranks; padding does not change it.

    Returns:
        0-d int64 tensor on the mask's device: the number of counting tokens, of rows with any, or B times
        ``max_length``. It may be 0, so clamp it *after* adding up.

    Raises:
        ValueError: as :func:`aggregate`.
    """
    _check_mode(mask_BT, mode)
    if mode == "constant":
        if max_length is None or not max_length > 0:
            raise ValueError(
                f"aggregation 'constant' needs a max_length above 0, got {max_length!r} "
                "(pass it to aggregate, or to aggregate_count beside a per-token loss)"
            )
        return torch.full((), mask_BT.shape[0] * max_length, dtype=torch.int64, device=mask_BT.device)
    valid = mask_BT.bool()
    return valid.sum() if mode == "token_mean" else valid.any(1).sum()


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate loss of PPO over one batch; :func:`policy_loss_per_token` has formula and arguments.

    Args:
        aggregation: see :func:`aggregate`; ``"constant"`` needs a length and so goes through the per-token
            function.

    Returns:
        The loss, and the metrics ``clip_frac`` and ``approx_kl``: masked token means whatever the
        aggregation, 0-d, detached.

    Raises:
        ValueError: as :func:`policy_loss_per_token` and :func:`aggregate`.
    """
    loss_BT, metrics_BT = policy_loss_per_token(
        logprobs,
        old_logprobs,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        weights=weights,
    )
    valid = mask.bool()
    num_tokens = valid.sum().clamp(min=1)
    metrics = {name: metric_BT.sum() / num_tokens for name, metric_BT in metrics_BT.items()}
    return aggregate(loss_BT, valid, aggregation), metrics


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate loss of each token: the negative of Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    With ``ratio = exp(logprobs - old_logprobs)``::

        loss = max(-ratio * A, -clip(ratio, 1 - clip_low, 1 + clip_high) * A)
        loss = min(loss, -dual_clip * A)  where A < 0                            if dual_clip is given
        loss = weights * loss                                                    if weights are given

    Two bounds instead of PPO's one: "clip higher" of DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 8). Dual
    clip: Ye et al. 2020, arXiv:1912.09729, eq. 5. Choices where implementations differ: weights multiply
    after all clipping; the log-ratio is not clamped but for overflow (at 80); metrics ignore the weights.

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
            trainer's.

    Returns:
        ``loss_BT``, and the metrics of each token as detached ``[B, T]`` tensors of the loss's dtype; all are
        0 where masked, so that their sums add up over micro-batches. ``clip_frac`` is 1 where the clipped
        term is strictly the larger loss, dual clip aside; ``approx_kl`` is old less new log-probability,
        unclamped (the k1 estimate of KL(old || new)).

    Raises:
        ValueError: the shapes differ, or a constant is not legal.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low must lie in [0, 1], got {clip_low!r}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high must be at least 0, got {clip_high!r}")
    if dual_clip is not None and not 1 < dual_clip < math.inf:
        raise ValueError(f"dual_clip must be None or a finite number above 1, got {dual_clip!r}")
    valid = mask.bool()
    log_ratio = torch.where(valid, as_float(logprobs) - as_float(old_logprobs.detach()), 0)
    cost = torch.where(valid, -as_float(advantages.detach()), 0)

    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    unclipped = ratio * cost
    # Where the clipped term is the larger, the ratio is at its bound and the term has no gradient.
    clipped = ratio.detach().clamp(1 - clip_low, 1 + clip_high) * cost
    is_clipped = clipped > unclipped
    loss_BT = torch.where(is_clipped, clipped, unclipped)
    if dual_clip is not None:
        bound = dual_clip * cost
        loss_BT = torch.where((cost > 0) & (loss_BT > bound), bound, loss_BT)
    if weights is not None:
        check_same_shape(logprobs=logprobs, weights=weights)
        loss_BT = loss_BT * torch.where(valid, as_float(weights.detach()), 0)
    metrics = {"clip_frac": is_clipped.to(loss_BT.dtype), "approx_kl": -log_ratio.detach()}
    return loss_BT, metrics


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None = None
) -> Tensor:
    """Masked token mean of :func:`value_loss_per_token`, which has formula and arguments; 0 if none counts.

    Raises:
        ValueError: as :func:`value_loss_per_token`.
    """
    return aggregate(value_loss_per_token(values, old_values, returns, mask, clip=clip), mask, "token_mean")


def value_loss_per_token(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None = None
) -> Tensor:
    """Half the squared error of each value, with PPO's clipping if ``clip`` is given.

    ::

        clipped = clip(values, old_values - clip, old_values + clip)
        loss    = 0.5 * max((values - returns)^2, (clipped - returns)^2)

    Schulman et al. 2017, eq. 9 has the squared error alone; the clipping is that of OpenAI Baselines'
    ``ppo2``. The factor ½ is included (implementations differ, and then put it into the coefficient).

    Args:
        values: ``[B, T]``; the only input that gets a gradient.
        old_values: values at the time of sampling; not read without ``clip``.
        returns: targets.
        mask: nonzero where the token counts.
        clip: largest change of a value that still lowers the loss; above 0, in units of the value. ``None``:
            no clipping.

    Returns:
        ``loss_BT``; 0 where masked.

    Raises:
        ValueError: the shapes differ, or ``clip`` is not above 0.
    """
    check_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    valid = mask.bool()
    values = torch.where(valid, as_float(values), 0)
    returns = torch.where(valid, as_float(returns.detach()), 0)
    squared_error = (values - returns).square()
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip must be None or above 0, got {clip!r}")
        old_values = torch.where(valid, as_float(old_values.detach()), 0)
        # Where the clipped error is the larger, the value is at its bound and the error has no gradient.
        clipped = torch.clamp(values.detach(), old_values - clip, old_values + clip)
        clipped_error = (clipped - returns).square()
        squared_error = torch.where(clipped_error > squared_error, clipped_error, squared_error)
    return 0.5 * squared_error


def _check_mode(mask_BT: Tensor, mode: str) -> None:
    if mode not in get_args(Aggregation):
        raise ValueError(f"unknown aggregation {mode!r}; legal are {', '.join(map(repr, get_args(Aggregation)))}")
    if mode != "token_mean" and mask_BT.dim() != 2:
        raise ValueError(f"aggregation {mode!r} needs [B, T], got shape {list(mask_BT.shape)}")
