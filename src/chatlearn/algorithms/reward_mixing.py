"""Several rewards of a response as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from chatlearn.algorithms.advantages import GroupIds, grpo
from chatlearn.algorithms.masking import as_float

RewardMixing: TypeAlias = Literal["sum_then_normalize", "normalize_then_sum"]


def combine_rewards(
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    group_ids_B: GroupIds,
    *,
    mode: RewardMixing = "sum_then_normalize",
    eps: float = 1e-6,
) -> Tensor:
    """One reward for each response, from several.

    ``sum_then_normalize`` is the weighted sum, which an estimator may normalise afterwards::

        reward = sum over k of weight_k * r_k

    ``normalize_then_sum`` first brings each component to one scale within its group. This is GDPO: Liu et al. 2026,
    arXiv:2601.05242, "Group reward-Decoupled Normalization", the advantage of each reward and their sum::

        reward = sum over k of weight_k * (r_k - mean_k of the group) / (std_k of the group + eps)

    With the sum alone, a component with a wide spread drowns the others, and combinations of rewards that have equal
    sums get equal advantages. The paper then whitens the sums over the batch; that is
    :func:`~chatlearn.algorithms.advantages.reinforce_plus_plus_baseline` on the result, as the means of its groups
    are 0 already.

    A response that some component of nonzero weight could not score (NaN) is unscorable: its reward is NaN, and it is
    left out of the statistics of its group for *all* components, as if it had never been sampled. A component of
    weight 0 has no part in anything.

    Choices where implementations differ: TRL (``multi_objective_aggregation``) counts a component that is missing as
    0 and leaves out a response only if all are missing, so that responses of one group may be sums of different
    components; its ``eps`` is 1e-4. Standard deviations are sample ones. A component that is equal in a whole group
    contributes exactly 0 there, and so does a group of one; sums below 1e-5 of the weights are rounding, and 0.

    Args:
        components: name -> ``[B]``; finite, or NaN where the component could not score the response.
        weights: name -> weight; finite; one for each component.
        group_ids_B: as many as responses; the sum alone does not read them.
        mode: ``"sum_then_normalize"`` or ``"normalize_then_sum"``.
        eps: added to the standard deviation.

    Returns:
        ``[B]`` without gradient, NaN where unscorable; float32, or float64 if a component is.

    Raises:
        ValueError: there are no components, names or shapes differ, a weight is not finite, the mode is unknown, or
            ids are not as many as responses.
    """
    _check(components, weights, mode)
    used = {name: as_float(reward.detach()) for name, reward in components.items() if weights[name] != 0}
    first = next(iter(components.values()))
    total = torch.zeros_like(as_float(first.detach()))
    if not used:
        return total
    unscorable = torch.stack([reward.isnan() for reward in used.values()]).any(0)
    for name, reward in used.items():
        known = torch.where(unscorable, math.nan, reward)
        part = known if mode == "sum_then_normalize" else grpo(known, group_ids_B, eps=eps)
        total = total + weights[name] * part
    if mode == "normalize_then_sum":  # what components leave that cancel out is rounding
        scale = sum(abs(weights[name]) for name in used)
        total = torch.where(total.abs() < 1e-5 * scale, 0, total)
    return torch.where(unscorable, math.nan, total)


def _check(components: Mapping[str, Tensor], weights: Mapping[str, float], mode: str) -> None:
    if mode not in get_args(RewardMixing):
        raise ValueError(f"unknown mode {mode!r}; legal are {', '.join(map(repr, get_args(RewardMixing)))}")
    if not components:
        raise ValueError("there are no components; give at least one")
    if components.keys() != weights.keys():
        raise ValueError(f"components are {', '.join(components)}, but weights are of {', '.join(weights) or 'none'}")
    if odd := [name for name, weight in weights.items() if not math.isfinite(weight)]:
        raise ValueError(f"the weight of {odd[0]} must be finite, got {weights[odd[0]]!r}")
    shapes = {name: list(reward.shape) for name, reward in components.items()}
    (first, expected), *_ = shapes.items()
    for name, shape in shapes.items():
        if shape != expected or len(shape) != 1:
            raise ValueError(f"{name} has shape {shape} but {first} has {expected}; all must be [B]")
