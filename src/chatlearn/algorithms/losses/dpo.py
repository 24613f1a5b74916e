"""Direct preference optimization and its variants: losses on pairs of responses.

Shape legend: ``B`` pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chatlearn.algorithms.losses.surrogate import LossAndMetrics
from chatlearn.algorithms.masking import as_float, check_same_shape

DPOVariant: TypeAlias = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down"
]

SMOOTHED: frozenset[DPOVariant] = frozenset({"sigmoid", "robust", "exo_pair"})
"""Variants that read ``label_smoothing``."""


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    variant: DPOVariant = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean of :func:`dpo_loss_per_pair`, which has formulas, arguments and metrics; 0 for no pair at all.

    Raises:
        ValueError: as :func:`dpo_loss_per_pair`.
    """
    loss_B, _ = dpo_loss_per_pair(
        chosen, rejected, ref_chosen, ref_rejected, beta=beta, variant=variant, label_smoothing=label_smoothing
    )
    return loss_B.sum() / max(1, len(loss_B))


def dpo_loss_per_pair(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    variant: DPOVariant = "sigmoid",
    label_smoothing: float = 0.0,
) -> LossAndMetrics:
    """Loss of each pair of a chosen and a rejected response: Rafailov et al. 2023, arXiv:2305.18290, and variants.

    With ``c = chosen - ref_chosen``, ``r = rejected - ref_rejected``, ``s`` the logistic function and ``e`` the
    label smoothing:

    - ``sigmoid``: ``-(1 - e) log s(beta (c - r)) - e log s(beta (r - c))``. DPO, eq. 7; with smoothing the
      conservative DPO of Mitchell 2023, for labels that are wrong with probability e.
    - ``robust``: ``(-(1 - e) log s(beta (c - r)) + e log s(beta (r - c))) / (1 - 2e)``. Unbiased under such labels
      (Chowdhury et al. 2024, arXiv:2403.00409).
    - ``hinge``: ``max(0, 1 - beta (c - r))``. SLiC-HF (Zhao et al. 2023, arXiv:2305.10425) in the normalised form of
      RSO (Liu et al. 2024, arXiv:2309.06657).
    - ``ipo``: ``(c - r - 1 / (2 beta))^2``. Azar et al. 2023, arXiv:2310.12036, eq. 17, with beta for its tau.
    - ``exo_pair``: KL from ``(s(beta (c - r)), s(beta (r - c)))`` to ``(1 - e, e)``. Ji et al. 2024,
      arXiv:2402.00856, eq. 16. Needs smoothing, as of 0.001.
    - ``nca_pair``: ``-log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2``. Chen et al. 2024, arXiv:2402.05369.
    - ``sppo_hard``: ``(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2``. Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with
      probabilities 1 and 0.
    - ``apo_zero``: ``1 - s(beta c) + s(beta r)``; ``apo_down``: ``s(beta c) + 1 - s(beta (c - r))``. D'Oosterlinck et
      al. 2024, arXiv:2408.06266, eq. 7 and 8.

    Choices where implementations differ: log-probabilities are taken as they come, so *sums* over the tokens of a
    response give the papers' losses; TRL divides by the length for ``ipo``, which a caller gets by passing means.
    Smoothing with a variant that knows none is an error, where TRL passes it by, and ``exo_pair`` without is one,
    where TRL sets 0.001. Variants that need statistics over the batch (AOT, BCO) are left out: their loss would
    depend on the micro-batches.

    Args:
        chosen: ``[B]``; log-probability of the better response of each pair under the policy in training. Like
            ``rejected`` it gets a gradient; the others are constants.
        rejected: ``[B]``; of the worse response.
        ref_chosen: ``[B]``; under the reference.
        ref_rejected: ``[B]``; under the reference.
        beta: strength of the bond to the reference; finite, above 0.
        variant: one of the above.
        label_smoothing: in [0, 0.5); assumed share of pairs in the wrong order.

    Returns:
        ``loss_B``, and detached ``[B]`` metrics: ``chosen_reward`` (beta c), ``rejected_reward`` (beta r), ``margin``
        (their difference) and ``accuracy`` (1 where the margin is above 0). Float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ or are not ``[B]``, the variant is unknown, a constant is not legal, or the
            variant and the label smoothing don't go together.
    """
    check_same_shape(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if chosen.dim() != 1:
        raise ValueError(f"chosen has shape {list(chosen.shape)}; expected [B], one log-probability per response")
    _check_constants(beta, variant, label_smoothing)
    chosen_log_ratio = as_float(chosen) - as_float(ref_chosen.detach())
    rejected_log_ratio = as_float(rejected) - as_float(ref_rejected.detach())
    loss_B = VARIANTS[variant](beta * chosen_log_ratio, beta * rejected_log_ratio, beta, label_smoothing)
    chosen_reward, rejected_reward = (beta * x.detach() for x in (chosen_log_ratio, rejected_log_ratio))
    margin = chosen_reward - rejected_reward
    return loss_B, {
        "chosen_reward": chosen_reward,
        "rejected_reward": rejected_reward,
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
    }


def _check_constants(beta: float, variant: str, label_smoothing: float) -> None:
    if variant not in get_args(DPOVariant):
        raise ValueError(f"unknown DPO variant {variant!r}; legal are {', '.join(map(repr, get_args(DPOVariant)))}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be a finite number above 0, got {beta!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing!r}")
    if label_smoothing and variant not in SMOOTHED:
        raise ValueError(
            f"DPO variant {variant!r} knows no label_smoothing, got {label_smoothing!r}; "
            f"leave it at 0 or take one of {', '.join(map(repr, sorted(SMOOTHED)))}"
        )
    if variant == "exo_pair" and not label_smoothing:
        raise ValueError("DPO variant 'exo_pair' needs a label_smoothing above 0, such as 0.001")


# Each takes beta * c, beta * r, beta and the label smoothing.


def _sigmoid(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    margin = chosen - rejected
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def _robust(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    margin = chosen - rejected
    return (smoothing * logsigmoid(-margin) - (1 - smoothing) * logsigmoid(margin)) / (1 - 2 * smoothing)


def _hinge(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    return torch.relu(1 - (chosen - rejected))


def _ipo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    return ((chosen - rejected) / beta - 0.5 / beta).square()


def _exo_pair(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    margin = chosen - rejected
    better = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-smoothing))
    worse = (-margin).sigmoid() * (logsigmoid(-margin) - math.log(smoothing))
    return better + worse


def _nca_pair(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    return -logsigmoid(chosen) - 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))


def _sppo_hard(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    return ((chosen - 0.5) / beta).square() + ((rejected + 0.5) / beta).square()


def _apo_zero(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    return (-chosen).sigmoid() + rejected.sigmoid()


def _apo_down(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float) -> Tensor:
    return chosen.sigmoid() + (rejected - chosen).sigmoid()


VARIANTS: dict[DPOVariant, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}
