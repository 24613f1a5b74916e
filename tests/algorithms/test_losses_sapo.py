"""SAPO's loss against figures worked out by hand and the paper's formula in plain Python, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_cases import INF, NAN, batches, one_token, poison
from hypothesis import given
from hypothesis import strategies as st
from loss_formulas import mean_over_rows, mean_over_tokens, sapo_token
from torch import Tensor

from chatlearn.algorithms.losses import sapo_loss, sapo_loss_per_token

TAUS = st.fixed_dictionaries({"tau_pos": st.floats(0.1, 5), "tau_neg": st.floats(0.1, 5)})
LOG3 = math.log(3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "taus", "expected", "slope", "gate"),
    [
        # At ratio 1 the gate is half open: the loss is -2 A / tau, the slope -A.
        (1.0, 1.0, (1.0, 1.05), -2.0, -1.0, 1.0),
        (1.0, -1.0, (1.0, 1.05), 2 / 1.05, 1.0, 1.0),
        (1.0, -1.0, (1.0, 2.0), 1.0, 1.0, 1.0),
        (1.0, 3.0, (2.0, 1.0), -3.0, -3.0, 1.0),
        # s(log 3) = 3/4, s(-log 3) = 1/4: the gradient has the weight 4 * 3/4 * 1/4 = 3/4.
        (1 + LOG3, 1.0, (1.0, 1.0), -3.0, -0.75 * (1 + LOG3), 0.75),
        (1 + LOG3, -1.0, (1.0, 1.0), 3.0, 0.75 * (1 + LOG3), 0.75),
        (1 - LOG3 / 2, 1.0, (2.0, 9.0), -0.5, -0.75 * (1 - LOG3 / 2), 0.75),
        (1 - LOG3 / 2, -1.0, (9.0, 2.0), 0.5, 0.75 * (1 - LOG3 / 2), 0.75),
        (1 + LOG3 / 4, 2.0, (4.0, 9.0), -1.5, -1.5 * (1 + LOG3 / 4), 0.75),
        (5.0, 0.0, (1.0, 1.0), 0.0, 0.0, 4 / (1 + math.exp(-4)) / (1 + math.exp(4))),
    ],
)
def test_by_hand(ratio: float, advantage: float, taus: tuple, expected: float, slope: float, gate: float) -> None:
    logprobs, old_logprobs, advantages, mask = one_token(math.log(ratio) - 1, -1, advantage, 1)
    loss, metrics = sapo_loss(
        logprobs.requires_grad_(), old_logprobs, advantages, mask, tau_pos=taus[0], tau_neg=taus[1]
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logprobs.grad.item() == pytest.approx(slope)
    assert metrics["gate"].item() == pytest.approx(gate)
    assert metrics["clip_frac"].item() == 0
    assert metrics["approx_kl"].item() == pytest.approx(-math.log(ratio))


def test_temperatures_are_those_of_the_paper_unless_said() -> None:
    arguments = one_token(-0.5, -1, -1, 1)
    said, _ = sapo_loss(*arguments, tau_pos=1.0, tau_neg=1.05)
    assert torch.equal(sapo_loss(*arguments)[0], said)
    arguments = one_token(-0.5, -1, 1, 1)
    said, _ = sapo_loss(*arguments, tau_pos=1.0, tau_neg=1.05)
    assert torch.equal(sapo_loss(*arguments)[0], said)


@given(batches(4), TAUS)
def test_matches_the_formula_token_by_token(batch: tuple[list[Tensor], Tensor], taus: dict) -> None:
    (logprobs, old_logprobs, advantages, weights), mask = batch
    fields = [poison(x, mask) for x in (logprobs, old_logprobs, advantages)]
    loss_BT, metrics_BT = sapo_loss_per_token(*fields, mask, weights=poison(weights, mask), **taus)
    loss, metrics = sapo_loss(*fields, mask, weights=poison(weights, mask), **taus)
    assert (loss_BT[~mask] == 0).all()
    assert all((metric_BT[~mask] == 0).all() for metric_BT in metrics_BT.values())
    expected, gates = [], []
    for i, valid in enumerate(mask):
        pairs = zip((logprobs - old_logprobs)[i, valid].tolist(), advantages[i, valid].tolist(), strict=True)
        tokens = [sapo_token(log_ratio, advantage, **taus) for log_ratio, advantage in pairs]
        expected.append([t.loss * w for t, w in zip(tokens, weights[i, valid].tolist(), strict=True)])
        gates.append([t.gate for t in tokens])
        assert loss_BT[i, valid].tolist() == pytest.approx(expected[-1], rel=1e-9, abs=1e-12)
    assert loss.item() == pytest.approx(mean_over_rows(expected), rel=1e-9, abs=1e-12)
    assert metrics["gate"].item() == pytest.approx(mean_over_tokens(gates), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [500.0, -500.0])
def test_a_ratio_that_is_far_off_gives_finite_numbers(advantage: float, log_ratio: float) -> None:
    """Far above, the gate is open and flat; far below, the ratio and its slope are 0."""
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    loss, _ = sapo_loss(logprobs, torch.zeros(1, 1), torch.full((1, 1), advantage), torch.ones(1, 1), tau_neg=1.0)
    loss.backward()
    opening = 1.0 if log_ratio > 0 else 1 / (1 + math.e)
    assert loss.item() == pytest.approx(-4 * opening * advantage)
    assert logprobs.grad.item() == 0


@pytest.mark.parametrize("function", [sapo_loss, sapo_loss_per_token])
@pytest.mark.parametrize("name", ["tau_pos", "tau_neg"])
@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
def test_illegal_temperatures_are_refused(function, name: str, value: float) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got {value}"):
        function(x, x, x, x, **{name: value})
