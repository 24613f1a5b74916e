"""Estimates of the KL divergence between the policy and a reference, one per token."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float, check_same_shape

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    Schulman 2020, "Approximating KL Divergence", with ``d = logprobs - ref_logprobs``:

    - ``k1 = d``: unbiased, varies most, negative for many tokens. Its gradient has expectation 0, so it
      serves in a reward, not in a loss.
    - ``k2 = d^2 / 2``: biased, varies little. The expectation of its gradient is that of the KL.
    - ``k3 = exp(-d) - 1 + d``: unbiased, never negative. The expectation of its gradient is that of
      KL(reference || policy).

    Choices where implementations differ: nothing is clamped, and gradients flow through both arguments (no
    straight-through estimate).

    It takes no mask, and works entry by entry: NaN in gives NaN out, there alone. Averages go through
    :func:`~chatlearn.algorithms.masking.masked_mean`. To differentiate, keep masked places of both arguments
    finite.

    Args:
        logprobs: log-probabilities of the sampled tokens under the policy; any shape.
        ref_logprobs: the same under the reference; same shape.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.

    Returns:
        Same shape; float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ, or the estimator is unknown.
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = as_float(logprobs) - as_float(ref_logprobs)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        # exp(-d) - 1 has no correct digit in float32 once d^2 / 2 is below 6e-8; expm1 keeps them.
        return torch.expm1(-difference) + difference
    raise ValueError(f"unknown KL estimator {estimator!r}; legal are {', '.join(map(repr, get_args(KLEstimator)))}")
