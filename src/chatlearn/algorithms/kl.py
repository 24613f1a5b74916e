"""Estimates of the KL divergence between the policy and a reference, one per token, and the control of its weight."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float, check_same_shape

KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "k1+", "k3+"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    Schulman 2020, "Approximating KL Divergence", with ``d = logprobs - ref_logprobs``:

    - ``k1 = d``: unbiased, varies most, negative for many tokens. Its gradient has expectation 0, so it
      serves in a reward, not in a loss.
    - ``k2 = d^2 / 2``: biased, varies little. The expectation of its gradient is that of the KL.
    - ``k3 = exp(-d) - 1 + d``: unbiased, never negative. The expectation of its gradient is that of
      KL(reference || policy).
    - ``k1+``, ``k3+``: straight-through. The value is that of k1 or k3, the gradient that of k2, so both have the
      right expectation. For a KL in the loss: Tang and Munos 2025, arXiv:2506.09477, show that differentiating k1
      or k3 does not minimise KL(policy || reference).

    All expectations are over tokens drawn from the policy itself; and a gradient per token knows nothing of the
    tokens that follow it.

    Choices where implementations differ: nothing is clamped (verl clamps k3 to [-10, 10], OpenRLHF each);
    gradients flow through both arguments, so detach a reference that is trained; k3 without ``+`` has its own
    gradient, as in TRL and in GRPO (Shao et al. 2024, arXiv:2402.03300, eq. 4). ``+`` is verl's name.

    It takes no mask, and works entry by entry: NaN in gives NaN out, there alone. Averages go through
    :func:`~chatlearn.algorithms.masking.masked_mean`. To differentiate, keep masked places of both arguments
    finite.

    Args:
        logprobs: log-probabilities of the sampled tokens under the policy; any shape.
        ref_logprobs: the same under the reference; same shape.
        estimator: ``"k1"``, ``"k2"``, ``"k3"``, ``"k1+"`` or ``"k3+"``.

    Returns:
        Same shape; float32, or float64 if an input is.

    Raises:
        ValueError: the shapes differ, or the estimator is unknown.
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if estimator not in get_args(KLEstimator):
        raise ValueError(f"unknown KL estimator {estimator!r}; legal are {', '.join(map(repr, get_args(KLEstimator)))}")
    difference = as_float(logprobs) - as_float(ref_logprobs)
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator.endswith("+"):
        gradient_of = 0.5 * difference.square()
        return _value(difference.detach(), estimator) + (gradient_of - gradient_of.detach())
    return _value(difference, estimator)


def _value(difference: Tensor, estimator: str) -> Tensor:
    if estimator.startswith("k1"):
        return difference
    # exp(-d) - 1 has no correct digit in float32 once d^2 / 2 is below 6e-8; expm1 keeps them.
    return torch.expm1(-difference) + difference


class AdaptiveKLController:
    """Weight of a KL penalty that follows a target: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

    ::

        error = clip(kl / target - 1, -clip, clip)
        coef  = coef * (1 + error * num_samples / horizon)

    The paper has a gain of 0.1 for each step; with ``num_samples / horizon`` in its place, as in the authors' code,
    verl and TRL's PPO, the weight moves at the same speed whatever the batch size. Choices where implementations
    differ: ``clip`` is the paper's 0.2 everywhere and can be chosen here.

    It is state of whoever trains: change it once per batch, read :attr:`coef` in between. It has ``state_dict`` and
    ``load_state_dict``, so an attribute of a module that holds one stands in checkpoints. The settings do not: they
    are the configuration's.

    Attributes:
        coef: the weight now; above 0.
        target: KL to be held, in nats, per token or per response as the caller measures it; above 0.
        horizon: samples over which an error of 1 would double the weight; above 0.
        clip: largest relative error that counts, above 0.
    """

    def __init__(self, coef: float, target: float, horizon: float, *, clip: float = 0.2) -> None:
        """Starts at ``coef``.

        Raises:
            ValueError: a number is not finite and above 0.
        """
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon), ("clip", clip)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
        self.coef, self.target, self.horizon, self.clip = float(coef), float(target), float(horizon), float(clip)

    def update(self, kl: float, num_samples: int) -> float:
        """Moves the weight by what a batch has shown.

        Args:
            kl: mean over the batch, in the unit of the target. May be negative, as an estimate is, or infinite.
            num_samples: of the batch; at least 0, and less than ``horizon / clip``.

        Returns:
            The new weight; always above 0.

        Raises:
            ValueError: ``kl`` is NaN, which would make all later weights NaN, or ``num_samples`` is negative or so
                many that the weight could become 0, from where it never comes back.
        """
        kl = float(kl)
        if math.isnan(kl):
            raise ValueError("kl is NaN: the log-probabilities of the policy or the reference are broken")
        if not 0 <= num_samples * self.clip < self.horizon:
            raise ValueError(
                f"num_samples must be at least 0 and less than horizon / clip = {self.horizon / self.clip:g}, "
                f"got {num_samples!r}; make the horizon larger"
            )
        error = min(max(kl / self.target - 1, -self.clip), self.clip)
        self.coef *= 1 + error * num_samples / self.horizon
        return self.coef

    def state_dict(self) -> dict[str, Any]:
        """The weight, under ``"coef"``."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the weight from :meth:`state_dict`'s result."""
        self.coef = float(state["coef"])
