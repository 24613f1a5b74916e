"""CISPO's loss against figures worked out by hand and the paper's formula in plain Python, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_cases import INF, batches, one_token, poison
from hypothesis import given
from hypothesis import strategies as st
from loss_formulas import cispo_token, mean_over_tokens
from torch import Tensor

from chatlearn.algorithms.losses import cispo_loss, cispo_loss_per_token

CLIPS = st.fixed_dictionaries({"clip_low": st.floats(0, 1), "clip_high": st.floats(0, 2)})
LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("logprob", "ratio", "advantage", "weight", "clipped"),
    [
        # Bounds 0.5 and 3. The weight is the clipped ratio.
        (-1.0, 1.0, 1.0, 1.0, 0),
        (-1.0, 2.0, 1.0, 2.0, 0),
        (-2.0, 2.0, -3.0, 2.0, 0),
        (-1.0, 8.0, 1.0, 3.0, 1),
        (-1.0, 8.0, -1.0, 3.0, 1),
        (-2.0, 0.1, 1.0, 0.5, 1),
        (-2.0, 0.1, -1.0, 0.5, 1),
        (-LOG2, 0.75, 4.0, 0.75, 0),
        (-5.0, 2.0, 0.0, 2.0, 0),
        (0.0, 2.0, 1.0, 2.0, 0),
    ],
)
def test_by_hand(logprob: float, ratio: float, advantage: float, weight: float, clipped: int) -> None:
    """Whether clipped or not, the slope is ``-weight * advantage``: that is what the loss is for."""
    logprobs, old_logprobs, advantages, mask = one_token(logprob, logprob - math.log(ratio), advantage, 1)
    loss, metrics = cispo_loss(logprobs.requires_grad_(), old_logprobs, advantages, mask, clip_low=0.5, clip_high=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(-weight * advantage * logprob)
    assert logprobs.grad.item() == pytest.approx(-weight * advantage)
    assert metrics["clip_frac"].item() == clipped
    assert metrics["approx_kl"].item() == pytest.approx(-math.log(ratio))


@given(batches(4), CLIPS)
def test_matches_the_formula_token_by_token(batch: tuple[list[Tensor], Tensor], clips: dict) -> None:
    (logprobs, old_logprobs, advantages, weights), mask = batch
    fields = [poison(x, mask) for x in (logprobs, old_logprobs, advantages)]
    loss_BT, metrics_BT = cispo_loss_per_token(*fields, mask, weights=poison(weights, mask), **clips)
    loss, metrics = cispo_loss(*fields, mask, weights=poison(weights, mask), **clips)
    assert (loss_BT[~mask] == 0).all()
    assert all((metric_BT[~mask] == 0).all() for metric_BT in metrics_BT.values())
    places = [tuple(place) for place in mask.nonzero().tolist()]
    expected = []
    for place in places:
        token = cispo_token(*(x[place].item() for x in (logprobs, old_logprobs, advantages)), **clips)
        expected.append(token.loss * weights[place].item())
        assert loss_BT[place].item() == pytest.approx(expected[-1], rel=1e-9, abs=1e-12)
    assert loss.item() == pytest.approx(mean_over_tokens([expected]), rel=1e-9, abs=1e-12)
    log_ratios = [(logprobs - old_logprobs)[place].item() for place in places]
    assert metrics["approx_kl"].item() == pytest.approx(-mean_over_tokens([log_ratios]), rel=1e-9, abs=1e-12)


def test_at_ratio_one_it_is_reinforce() -> None:
    advantages, mask = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1, 1, 0]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    loss, _ = cispo_loss(logprobs, logprobs, advantages, mask, clip_low=0.2, clip_high=0.2)
    loss.backward()
    assert loss.item() == pytest.approx((1 - 4) / 2)
    assert logprobs.grad.tolist() == [[-0.5, 1.0, 0.0]]


def test_without_bounds_the_gradient_is_the_policy_gradient_at_any_ratio() -> None:
    """The derivative of ``-ratio * A``: an importance-weighted REINFORCE."""
    old_logprobs = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    logprobs = torch.tensor([[-3.0, -0.1, -1.5]], dtype=torch.float64, requires_grad=True)
    loss, metrics = cispo_loss(logprobs, old_logprobs, advantages, torch.ones(1, 3), clip_low=1.0, clip_high=INF)
    loss.backward()
    (expected,) = torch.autograd.grad((-(logprobs - old_logprobs).exp() * advantages).mean(), logprobs)
    torch.testing.assert_close(logprobs.grad, expected)
    assert metrics["clip_frac"].item() == 0


def test_a_ratio_that_overflows_is_bounded() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    loss, _ = cispo_loss(
        logprobs, torch.tensor([[-501.0]]), torch.ones(1, 1), torch.ones(1, 1), clip_low=0.2, clip_high=4.0
    )
    loss.backward()
    assert (loss.item(), logprobs.grad.item()) == (5, -5)
