"""From per-token losses to a scalar, and to the sums and counts that a trainer adds up.

Shape legend: ``B`` samples, ``T`` tokens.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float, check_same_shape

Aggregation: TypeAlias = Literal["token_mean", "seq_sum_mean", "seq_mean_mean", "constant"]


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
    passes them by. ``constant`` divides by all B rows. They differ on the length of ``constant`` as well: verl
    takes the width of the batch, which changes with the padding; here, as in TRL, it is a number that the caller
    states.

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
                f"aggregation 'constant' needs a max_length above 0, got {max_length!r} (the losses of a whole batch "
                "do not know it: call the per-token loss, then aggregate or aggregate_count with max_length)"
            )
        return torch.full((), mask_BT.shape[0] * max_length, dtype=torch.int64, device=mask_BT.device)
    valid = mask_BT.bool()
    return valid.sum() if mode == "token_mean" else valid.any(1).sum()


def _check_mode(mask_BT: Tensor, mode: str) -> None:
    if mode not in get_args(Aggregation):
        raise ValueError(f"unknown aggregation {mode!r}; legal are {', '.join(map(repr, get_args(Aggregation)))}")
    if mode != "token_mean" and mask_BT.dim() != 2:
        raise ValueError(f"aggregation {mode!r} needs [B, T], got shape {list(mask_BT.shape)}")
