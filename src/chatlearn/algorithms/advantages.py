"""Advantages: how much better a sampled token, or a whole response, was than expected.

With a value model: :func:`gae`. From groups of responses to one prompt: :func:`grpo` (Dr. GRPO too), :func:`rloo`,
:func:`reinforce_plus_plus_baseline`. From a batch: :func:`reinforce_plus_plus`. From a greedy response: :func:`remax`.
Those of a whole response, ``[B]``, become those of its tokens with
``torch.where(mask_BT.bool(), advantages_B.unsqueeze(1), 0)``.

A reward of NaN stands for a response that could not be scored. It is left out of all statistics, as if it had never
been sampled, and its advantage is 0, so that it teaches nothing.

Shape legend: ``B`` samples, ``T`` tokens; position t of a ``[B, T]`` tensor belongs to token t. Nothing here
waits for the device, but for group ids that lie there.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float, check_same_shape, masked_whiten

GroupIds: TypeAlias = Tensor | Sequence[Hashable]
"""One id per sample: integers, strings, or whatever compares. Order and neighbourhood mean nothing."""


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


def grpo(rewards_B: Tensor, group_ids_B: GroupIds, *, normalize_std: bool = True, eps: float = 1e-6) -> Tensor:
    """Advantages relative to the group: GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1.2), and Dr. GRPO.

    With mean and standard deviation over the responses of a group::

        advantage = (reward - mean) / (std + eps)        GRPO
        advantage = reward - mean                        Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, section 3.2)

    Choices where implementations differ: the standard deviation is the sample one (ddof = 1), as in TRL's
    ``GRPOTrainer`` and verl (TRL's asynchronous trainer has the population's), and ``eps`` stands beside it, 1e-6 as
    in verl (TRL: 1e-4). A group of one has advantage 0; verl leaves its reward as it is. So has a group whose rewards
    are all equal, exactly: elsewhere the rounding of the mean, divided by almost nothing, may become an advantage.

    Args:
        rewards_B: ``[B]``; of whole responses; finite, or NaN where one could not be scored.
        group_ids_B: as many; tensor ``[B]``, list or tuple. Responses to one prompt share an id.
        normalize_std: ``False`` is Dr. GRPO.
        eps: finite, above 0.

    Returns:
        ``[B]`` without gradient; 0 where the reward is NaN; float32, or float64 if the rewards are. Those of a group
        add up to 0.

    Raises:
        ValueError: the rewards are not ``[B]``, the number of ids is another, or ``eps`` is not legal.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be a finite number above 0, got {eps!r}")
    groups = _Groups(rewards_B, group_ids_B)
    if not normalize_std:
        return groups.centered_B
    variance_B = groups.sums(groups.centered_B.square()) / (groups.count_B - 1).clamp(min=1)
    return groups.centered_B / (variance_B.sqrt() + eps)


def dr_grpo(rewards_B: Tensor, group_ids_B: GroupIds) -> Tensor:
    """Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, section 3.2): :func:`grpo` with ``normalize_std=False``.

    Args:
        rewards_B: ``[B]``; finite, or NaN where a response could not be scored.
        group_ids_B: as many; tensor ``[B]``, list or tuple.

    Returns:
        As :func:`grpo`.

    Raises:
        ValueError: the rewards are not ``[B]``, or the number of ids is another.
    """
    return grpo(rewards_B, group_ids_B, normalize_std=False)


def rloo(rewards_B: Tensor, group_ids_B: GroupIds) -> Tensor:
    """REINFORCE leave-one-out: the reward less the mean of the *other* responses to the prompt.

    Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; for language models Ahmadian et al. 2024,
    arXiv:2402.14740. With n responses in a group::

        advantage = reward - (sum of the group - reward) / (n - 1) = (reward - mean) * n / (n - 1)

    Choices where implementations differ: a group of one has advantage 0 (verl's loop leaves its reward as it is, its
    vectorised version gives 0); rewards are not clipped or normalised over the batch, as OpenRLHF does by default.

    Args:
        rewards_B: ``[B]``; finite, or NaN where a response could not be scored. A KL penalty belongs in here.
        group_ids_B: as many; tensor ``[B]``, list or tuple.

    Returns:
        ``[B]`` without gradient; 0 where the reward is NaN; float32, or float64 if the rewards are. Those of a group
        add up to 0.

    Raises:
        ValueError: the rewards are not ``[B]``, or the number of ids is another.
    """
    groups = _Groups(rewards_B, group_ids_B)
    return groups.centered_B * groups.count_B / (groups.count_B - 1).clamp(min=1)


def reinforce_plus_plus(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0) -> Tensor:
    """REINFORCE++ (Hu 2025, arXiv:2501.03262): discounted returns, whitened over all tokens of the batch.

    With the valid tokens of a row numbered ``0 .. n-1``::

        return[t] = reward[t] + gamma * return[t+1]                  return[n] = 0
        advantage = (return - mean) / sqrt(var + 1e-8)               over the valid tokens of all rows

    Choices where implementations differ: time runs from valid token to valid token, as in :func:`gae` (verl starts
    anew behind a masked token within a response, so that what is sampled before the call of a tool has no part in
    the reward after it); the whitening is that of :func:`~chatlearn.algorithms.masking.masked_whiten` (verl and
    OpenRLHF weigh tokens the same way).

    Call it on the whole batch: whitening a part gives other numbers.

    Args:
        rewards_BT: reward received for token t: the KL penalty, and the score at the last valid token. A row with
            NaN at a valid token could not be scored.
        mask_BT: nonzero on sampled tokens.
        gamma: discount, in [0, 1].

    Returns:
        ``[B, T]`` without gradient; 0 where not valid and in rows that could not be scored; float32, or float64 if
        the rewards are. Fewer than two valid tokens are not whitened.

    Raises:
        ValueError: the shapes differ or are not ``[B, T]``, or ``gamma`` lies outside of [0, 1].
    """
    check_same_shape(rewards_BT=rewards_BT, mask_BT=mask_BT)
    rewards_BT, valid = rewards_BT.detach(), mask_BT.bool()
    scorable = ~(rewards_BT.isnan() & valid).any(-1, keepdim=True)
    valid = valid & scorable
    _, returns = gae(rewards_BT, torch.zeros_like(rewards_BT), valid, gamma=gamma, lam=1.0)
    return masked_whiten(returns, valid)


def reinforce_plus_plus_baseline(rewards_B: Tensor, group_ids_B: GroupIds) -> Tensor:
    """REINFORCE++ with the group's mean as its baseline (Hu 2025, arXiv:2501.03262), whitened over the batch.

    ::

        difference = reward - mean of the group
        advantage  = difference / sqrt(var + 1e-8)        variance over all responses of the batch

    One scale for all groups, where GRPO divides each group by its own. Choices where implementations differ: every
    response weighs the same in the variance; verl and OpenRLHF whiten over tokens, so that long responses weigh
    more (:func:`grpo` with ``normalize_std=False``, spread over the tokens and then whitened, gives that). Groups of
    one have no part in the variance, and advantage 0.

    Call it on the whole batch: whitening a part gives other numbers.

    Args:
        rewards_B: ``[B]``; finite, or NaN where a response could not be scored.
        group_ids_B: as many; tensor ``[B]``, list or tuple.

    Returns:
        ``[B]`` without gradient; 0 where the reward is NaN; float32, or float64 if the rewards are.

    Raises:
        ValueError: the rewards are not ``[B]``, or the number of ids is another.
    """
    groups = _Groups(rewards_B, group_ids_B)
    return masked_whiten(groups.centered_B, groups.scorable_B & (groups.count_B > 1))


def remax(rewards_B: Tensor, baseline_rewards_B: Tensor) -> Tensor:
    """ReMax (Li et al. 2023, arXiv:2310.10505): the reward less that of the greedy response to the same prompt.

    ::

        advantage = reward - baseline_reward

    Choices where implementations differ: none for rewards of whole responses; with rewards per token verl subtracts
    the baseline from the reward to go. Nothing is whitened.

    Args:
        rewards_B: ``[B]``; of sampled responses; NaN where one could not be scored.
        baseline_rewards_B: ``[B]``; of the greedy response to the prompt of each, NaN likewise.

    Returns:
        ``[B]`` without gradient; 0 where either reward is NaN; float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ or are not ``[B]``.
    """
    check_same_shape(rewards_B=rewards_B, baseline_rewards_B=baseline_rewards_B)
    _check_one_per_sample(rewards_B)
    difference = as_float(rewards_B.detach()) - as_float(baseline_rewards_B.detach())
    return torch.where(rewards_B.isnan() | baseline_rewards_B.isnan(), 0, difference)


class _Groups:
    """The rewards of a batch by groups.

    Attributes:
        scorable_B: whether the reward is a number.
        count_B: number of scorable responses in the sample's group.
        centered_B: reward less the mean of the group; 0 where not scorable, alone in its group, or in a group whose
            rewards are all equal.
    """

    def __init__(self, rewards_B: Tensor, group_ids_B: GroupIds) -> None:
        _check_one_per_sample(rewards_B)
        rewards = as_float(rewards_B.detach())
        self.index_B, self.num_groups = _group_index(rewards, group_ids_B)
        self.scorable_B = ~rewards.isnan()
        # Distances from the lowest reward of the group, not from 0: the mean of equal numbers need not be that
        # number, but the mean of zeros is 0.
        lowest = rewards.new_full((self.num_groups,), math.inf)
        lowest = lowest.scatter_reduce(0, self.index_B, torch.where(self.scorable_B, rewards, math.inf), "amin")
        shifted = torch.where(self.scorable_B, rewards - lowest[self.index_B], 0)
        self.count_B = self.sums(self.scorable_B.to(torch.int64))
        mean_B = self.sums(shifted) / self.count_B.clamp(min=1)
        self.centered_B = torch.where(self.scorable_B, shifted - mean_B, 0)

    def sums(self, x_B: Tensor) -> Tensor:
        """For each sample the sum over its group."""
        return x_B.new_zeros(self.num_groups).index_add(0, self.index_B, x_B)[self.index_B]


def _group_index(rewards_B: Tensor, group_ids_B: GroupIds) -> tuple[Tensor, int]:
    """Group ids as whole numbers 0, 1, … on the device of the rewards, and how many there are."""
    shape = list(group_ids_B.shape) if isinstance(group_ids_B, Tensor) else [len(group_ids_B)]
    if shape != list(rewards_B.shape):
        raise ValueError(f"group_ids_B has shape {shape} but rewards_B has shape {list(rewards_B.shape)}; one id each")
    if isinstance(group_ids_B, Tensor):
        result = torch.unique(group_ids_B, return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        unique, index = cast("tuple[Tensor, Tensor]", result)
        return index.to(rewards_B.device), len(unique)
    # Tensors compare by identity: each would be a group of its own.
    ids = [group.item() if isinstance(group, Tensor) else group for group in group_ids_B]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(ids))}
    return torch.tensor([numbers[group] for group in ids], dtype=torch.int64, device=rewards_B.device), len(numbers)


def _check_one_per_sample(rewards_B: Tensor) -> None:
    if rewards_B.dim() != 1:
        raise ValueError(f"rewards_B has shape {list(rewards_B.shape)}; expected [B], one reward per response")
