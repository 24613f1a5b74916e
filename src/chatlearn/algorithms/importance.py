"""Importance weights between the engine that sampled and the model in training.

Both have the same weights, and still their log-probabilities differ: other kernels, other precision, other batches.
The weights correct the gradient for it (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy
RL Training"; Liu et al. 2025, "When Speed Kills Stability").

Shape legend: ``B`` samples, ``T`` tokens. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from chatlearn.algorithms.losses.surrogate import exponentiate, masked_log_ratio
from chatlearn.algorithms.masking import check_same_shape

ImportanceLevel: TypeAlias = Literal["token", "sequence"]
ImportanceMode: TypeAlias = Literal["truncate", "mask"]


def importance_weights(
    train_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    level: ImportanceLevel,
    mode: ImportanceMode,
    cap: float,
) -> Tensor:
    """Ratio of probabilities trainer / sampler for each token, bounded; to be passed as ``weights`` of a loss.

    ::

        ratio  = exp(train_logprobs - rollout_logprobs)                      level "token"
        ratio  = exp(sum over the tokens of the sequence of the same)        level "sequence", for all its tokens
        weight = min(ratio, cap)                                             mode "truncate"
        weight = ratio where ratio <= cap, else 0                            mode "mask"

    Truncation at the token is TIS (Yao et al. 2025); the ratio of the sequence is the exact one for a reward that
    comes at its end, and varies much more (Liu et al. 2025).

    Choices where implementations differ: the sequence's ratio is the product over its tokens, as in TRL and verl
    (OpenRLHF's ``seq-mask-tis`` takes the geometric mean); ``mask`` drops what lies above the cap alone (IcePop drops
    what lies below a second bound too); what is dropped has weight 0 and still counts as a token when losses are
    averaged; the log-ratio is not clamped but for overflow (at 80; verl: to [-20, 20]).

    Args:
        train_logprobs: ``[B, T]``; log-probabilities of the sampled tokens under the trainer's model with the weights
            that sampled them, so the ``old_logprobs`` of the losses.
        rollout_logprobs: ``[B, T]``; as the sampler reported them.
        mask: ``[B, T]``; nonzero where the token counts.
        level: ``"token"`` or ``"sequence"``.
        mode: ``"truncate"`` or ``"mask"``.
        cap: largest weight; above 0. Infinity bounds nothing. TRL's default is 3, verl's 2.

    Returns:
        ``[B, T]`` without gradient; 0 where masked; float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``, level or mode is unknown, or the cap is not above 0.
    """
    check_same_shape(train_logprobs=train_logprobs, rollout_logprobs=rollout_logprobs, mask=mask)
    if mask.dim() != 2:
        raise ValueError(f"train_logprobs has shape {list(mask.shape)}; expected [B, T]")
    for name, value, legal in (("level", level, ImportanceLevel), ("mode", mode, ImportanceMode)):
        if value not in get_args(legal):
            raise ValueError(f"unknown {name} {value!r}; legal are {', '.join(map(repr, get_args(legal)))}")
    if not cap > 0:
        raise ValueError(f"cap must be above 0, got {cap!r}")
    valid = mask.bool()
    log_ratio = masked_log_ratio(train_logprobs.detach(), rollout_logprobs, valid)
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    ratio = exponentiate(log_ratio)
    bounded = ratio.clamp(max=cap) if mode == "truncate" else torch.where(ratio > cap, 0, ratio)
    return torch.where(valid, bounded, 0)
