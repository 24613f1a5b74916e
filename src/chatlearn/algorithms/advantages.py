"""Advantages: how much better a sampled token, or a whole response, was than expected.

Shape legend: ``B`` samples, ``T`` tokens; position t of a ``[B, T]`` tensor belongs to token t. Nothing here
waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float, check_same_shape


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16), and returns.

    With the valid tokens of a row numbered ``0 .. n-1``::

        delta[t]     = reward[t] + gamma * value[t+1] - value[t]          value[n] = 0
        advantage[t] = delta[t] + gamma * lam * advantage[t+1]            advantage[n] = 0
        return[t]    = advantage[t] + value[t]

    Choices where implementations differ: time runs from valid token to valid token, so prompt, padding and
    the tokens of tools between two sampled ones are no steps, do not discount, and their rewards do not
    count; the value after the last valid token is 0 for a response that was cut off as well; advantages are
    not whitened (see :func:`~chatlearn.algorithms.masking.masked_whiten`).

    Args:
        rewards_BT: reward received for token t (for most tasks 0 but at the last valid token; a KL penalty
            fills the others).
        values_BT: value of the state in which token t was chosen.
        mask_BT: nonzero on sampled tokens.
        gamma: discount, in [0, 1].
        lam: lambda of the estimator, in [0, 1]; 0 gives the one-step residual, 1 the discounted return less
            the value.

    Returns:
        ``advantages_BT`` and ``returns_BT``, 0 where not valid; float32, or float64 if an input is. They are
        differentiable in rewards and values: call it under ``torch.no_grad`` or detach where they are
        targets.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``; ``gamma`` or ``lam`` lies outside of [0, 1].
    """
    check_same_shape(rewards_BT=rewards_BT, values_BT=values_BT, mask_BT=mask_BT)
    if rewards_BT.dim() != 2:
        raise ValueError(f"rewards_BT has shape {list(rewards_BT.shape)}; expected [B, T]")
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
    valid = mask_BT.bool()
    values = torch.where(valid, as_float(values_BT), 0)

    # Valid tokens move to the front of their row, in order, with zeros after the last: neighbours are steps.
    order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    step_rewards = torch.where(valid, as_float(rewards_BT), 0).gather(1, order)
    step_values = values.gather(1, order)
    next_values = torch.zeros_like(step_values)
    next_values[:, :-1] = step_values[:, 1:]
    deltas = step_rewards + gamma * next_values - step_values

    # One kernel for each step in time: whatever can be done for all steps at once is done above.
    reversed_advantages: list[Tensor] = []
    advantage = torch.zeros_like(deltas[:, 0])
    for delta in reversed(deltas.unbind(1)):
        advantage = torch.add(delta, advantage, alpha=gamma * lam)
        reversed_advantages.append(advantage)
    step_advantages = torch.stack(reversed_advantages[::-1], dim=1)
    advantages = torch.zeros_like(step_advantages).scatter(1, order, step_advantages)
    return advantages, advantages + values
