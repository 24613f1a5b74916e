"""GSPO's loss against figures worked out by hand and the paper's formula in plain Python, sequence by sequence."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_cases import INF, NAN, batches, poison
from hypothesis import given
from hypothesis import strategies as st
from loss_formulas import gspo_row, mean_over_rows, mean_over_tokens
from torch import Tensor

from chatlearn.algorithms.losses import aggregate, gspo_loss, gspo_loss_per_token

CLIPS = st.fixed_dictionaries({"clip_low": st.floats(0, 1), "clip_high": st.floats(0, 2)})


def rows(ratios: list[float], advantage: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sequence with these ratios at its tokens."""
    old_logprobs = torch.linspace(-1, -2, len(ratios), dtype=torch.float64).unsqueeze(0)
    logprobs = old_logprobs + torch.tensor([ratios], dtype=torch.float64).log()
    return logprobs, old_logprobs, torch.full_like(logprobs, advantage), torch.ones(1, len(ratios))


@pytest.mark.parametrize(
    ("ratios", "advantage", "expected", "slope", "clipped"),
    [
        # The ratio of the sequence is the geometric mean; bounds 0.5 and 2. The slope at each of n tokens is that of
        # the unclipped loss / n, or 0.
        ([1.5], 2.0, -3.0, -3.0, 0),
        ([2.0, 0.5], 1.0, -1.0, -0.5, 0),
        ([1.0, 2.25], 2.0, -3.0, -1.5, 0),
        ([2.0, 8.0], 1.0, -2.0, 0.0, 1),
        ([2.0, 8.0], -1.0, 4.0, 2.0, 0),
        ([0.25, 0.25, 0.25], -3.0, 1.5, 0.0, 1),
        ([0.25, 0.25, 0.25], 3.0, -0.75, -0.25, 0),
        ([1.0, 1.0, 8.0], -1.0, 2.0, 2 / 3, 0),
        # One token far off doesn't clip the sequence; in PPO it would be clipped alone.
        ([5.0, 0.2, 1.0, 1.0], 4.0, -4.0, -1.0, 0),
        ([3.0, 3.0], 0.0, 0.0, 0.0, 0),
    ],
)
def test_by_hand(ratios: list[float], advantage: float, expected: float, slope: float, clipped: int) -> None:
    logprobs, *others = rows(ratios, advantage)
    loss, metrics = gspo_loss(logprobs.requires_grad_(), *others, clip_low=0.5, clip_high=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logprobs.grad.tolist() == [pytest.approx([slope] * len(ratios), abs=1e-12)]
    assert metrics["clip_frac"].item() == clipped
    assert metrics["approx_kl"].item() == pytest.approx(-math.log(math.prod(ratios)) / len(ratios), abs=1e-12)


def test_every_sequence_weighs_the_same() -> None:
    """Ratios 2 (of three tokens) and 3 (of one): -(2 + 3) / 2, where a mean over tokens is -(3 * 2 + 3) / 4."""
    log_ratio = torch.tensor([[2.0, 2.0, 2.0], [3.0, NAN, NAN]]).log()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    arguments = (log_ratio, torch.zeros(2, 3), torch.ones(2, 3), mask)
    loss, _ = gspo_loss(*arguments, clip_low=1.0, clip_high=INF)
    by_token, _ = gspo_loss(*arguments, clip_low=1.0, clip_high=INF, aggregation="token_mean")
    assert loss.item() == pytest.approx(-2.5)
    assert by_token.item() == pytest.approx(-2.25)


@given(batches(4), CLIPS)
def test_matches_the_formula_sequence_by_sequence(batch: tuple[list[Tensor], Tensor], clips: dict) -> None:
    (logprobs, old_logprobs, advantages, weights), mask = batch
    fields = [poison(x, mask) for x in (logprobs, old_logprobs, advantages)]
    loss_BT, metrics_BT = gspo_loss_per_token(*fields, mask, weights=poison(weights, mask), **clips)
    loss, metrics = gspo_loss(*fields, mask, weights=poison(weights, mask), **clips)
    assert (loss_BT[~mask] == 0).all()
    assert all((metric_BT[~mask] == 0).all() for metric_BT in metrics_BT.values())
    expected, log_ratios = [], []
    for i, valid in enumerate(mask):
        log_ratios.append((logprobs - old_logprobs)[i, valid].tolist())
        tokens = gspo_row(log_ratios[-1], advantages[i, valid].tolist(), **clips)
        expected.append([t.loss * w for t, w in zip(tokens, weights[i, valid].tolist(), strict=True)])
        assert loss_BT[i, valid].tolist() == pytest.approx(expected[-1], rel=1e-9, abs=1e-12)
    assert loss.item() == pytest.approx(mean_over_rows(expected), rel=1e-9, abs=1e-12)
    assert metrics["approx_kl"].item() == pytest.approx(-mean_over_tokens(log_ratios), rel=1e-9, abs=1e-12)


def test_gradient_of_a_sequence_with_one_advantage_is_that_of_gspo_token() -> None:
    """Eq. 14 of the paper: each token has the ratio sg[s] * p / sg[p], clipped and averaged like PPO's."""
    generator = torch.Generator().manual_seed(0)
    old_logprobs = -torch.rand(6, 5, dtype=torch.float64, generator=generator)
    logprobs = old_logprobs + 0.3 * torch.randn(6, 5, dtype=torch.float64, generator=generator)
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5], dtype=torch.float64).unsqueeze(1).expand(6, 5)
    mask = torch.arange(5) < torch.tensor([[5], [5], [3], [1], [4], [2]])

    def gspo_token(x: Tensor) -> Tensor:
        means = ((x - old_logprobs) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        ratio = means.exp().detach() * (x - x.detach()).exp()
        losses = torch.maximum(-ratio * advantages, -ratio.clamp(0.9, 1.1) * advantages)
        return aggregate(losses, mask, "seq_mean_mean")

    mine, theirs = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    loss, _ = gspo_loss(mine, old_logprobs, advantages, mask, clip_low=0.1, clip_high=0.1)
    loss.backward()
    other = gspo_token(theirs)
    other.backward()
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert 0 < (mine.grad == 0).all(1).sum() < 6


def test_clipping_takes_whole_sequences() -> None:
    ratios = torch.tensor([[3.0, 3.0], [1.0, 1.0]])
    mask = torch.ones(2, 2)
    _, metrics_BT = gspo_loss_per_token(
        ratios.log(), torch.zeros(2, 2), torch.ones(2, 2), mask, clip_low=0.2, clip_high=0.2
    )
    assert metrics_BT["clip_frac"].tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(("advantage", "log_ratio"), [(1.0, 500.0), (-1.0, -500.0)])
def test_a_clipped_sequence_has_zero_gradient_however_far_it_is_off(advantage: float, log_ratio: float) -> None:
    logprobs = torch.full((1, 2), log_ratio, requires_grad=True)
    loss, _ = gspo_loss(
        logprobs, torch.zeros(1, 2), torch.full((1, 2), advantage), torch.ones(1, 2), clip_low=0.2, clip_high=0.2
    )
    loss.backward()
    assert loss.item() == pytest.approx(-1.2 if advantage > 0 else 0.8)
    assert logprobs.grad.tolist() == [[0, 0]]


def test_packed_rows_are_refused() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"GSPO's loss needs \[B, T\] with a sequence in each row, got shape \[3\]"):
        gspo_loss_per_token(x, x, x, x, clip_low=0.2, clip_high=0.2)
