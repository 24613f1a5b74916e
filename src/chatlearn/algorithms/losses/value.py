"""Squared error of values, with the clipping of PPO."""

from __future__ import annotations

import torch
from torch import Tensor

from chatlearn.algorithms.losses.aggregation import aggregate
from chatlearn.algorithms.masking import as_float, check_same_shape


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
