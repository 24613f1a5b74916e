"""REINFORCE++ against figures worked out by hand and loops over the valid tokens in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_cases import INF, NAN, batches, poison
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.advantages import reinforce_plus_plus

UNIT = st.floats(0, 1)


def whitened_returns(rows: list[list[float]], gamma: float) -> list[list[float]]:
    """Of the valid rewards of each row; a row that holds NaN drops out."""
    returns = []
    for row in rows:
        to_go = [0.0]
        for reward in reversed(row):
            to_go.append(reward + gamma * to_go[-1])
        returns.append(to_go[:0:-1])
    scored = [[0.0] * len(row) if any(map(math.isnan, row)) else row for row in returns]
    kept = [x for row in returns for x in row if not any(map(math.isnan, row))]
    if len(kept) < 2:
        return scored
    mean = sum(kept) / len(kept)
    scale = math.sqrt(sum((x - mean) ** 2 for x in kept) / (len(kept) - 1) + 1e-8)
    return [
        [0.0 if any(map(math.isnan, row)) else (x - mean) / scale for x in scores]
        for row, scores in zip(returns, scored, strict=True)
    ]


@pytest.mark.parametrize(
    ("rewards", "mask", "gamma", "centered", "variance"),
    [
        # Returns 1, 1 and 3, 3.
        ([[0, 1], [0, 3]], [[1, 1], [1, 1]], 1.0, [[-1, -1], [1, 1]], 4 / 3),
        # The same with prompt, tool and padding.
        (
            [[9, 0, NAN, 1, 5], [0, INF, 3, 9, NAN]],
            [[0, 1, 0, 1, 0], [1, 0, 1, 0, 0]],
            1.0,
            [[0, -1, 0, -1, 0], [1, 0, 1, 0, 0]],
            4 / 3,
        ),
        # Returns 1/2, 1 and 1, 2: mean 9/8.
        ([[0, 1], [0, 2]], [[1, 1], [1, 1]], 0.5, [[-5 / 8, -1 / 8], [-1 / 8, 7 / 8]], (25 + 1 + 1 + 49) / 64 / 3),
        # Rewards along the way count for the tokens before them: returns 3, 2, 1.
        ([[1, 1, 1]], [[1, 1, 1]], 1.0, [[1, 0, -1]], 1),
        # Without a future every return is the reward: 1, 4, 1.
        ([[1, 4, 1]], [[1, 1, 1]], 0.0, [[-1, 2, -1]], 3),
        ([[1, 1, 1]], [[1, 1, 1]], 0.0, [[0, 0, 0]], 1),
    ],
)
def test_by_hand(rewards: list, mask: list, gamma: float, centered: list[list[float]], variance: float) -> None:
    advantages = reinforce_plus_plus(torch.tensor(rewards, dtype=torch.float64), torch.tensor(mask), gamma=gamma)
    deviation = math.sqrt(variance)
    assert advantages.tolist() == [pytest.approx([x / deviation for x in row], abs=1e-7) for row in centered]


def test_a_row_with_an_unscorable_reward_is_left_out() -> None:
    rewards = torch.tensor([[0.0, 1.0], [0.0, NAN], [0.0, 3.0]])
    advantages = reinforce_plus_plus(rewards, torch.ones(3, 2))
    assert advantages[1].tolist() == [0, 0]
    assert torch.equal(advantages[[0, 2]], reinforce_plus_plus(rewards[[0, 2]], torch.ones(2, 2)))


@given(batches(1), UNIT, st.data())
def test_matches_a_loop_over_valid_tokens(
    batch: tuple[list[Tensor], Tensor], gamma: float, data: st.DataObject
) -> None:
    (rewards,), mask = batch
    rewards[data.draw(st.integers(0, len(mask) - 1)), data.draw(st.integers(0, mask.shape[1] - 1))] = data.draw(
        st.sampled_from([NAN, 1.0])
    )
    actual = reinforce_plus_plus(poison(rewards, mask), mask, gamma=gamma)
    rows = [row[valid].tolist() for row, valid in zip(rewards, mask, strict=True)]
    assert (actual[~mask] == 0).all()
    for advantages, valid, expected in zip(actual, mask, whitened_returns(rows, gamma), strict=True):
        assert advantages[valid].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(batches(1, bound=2))
def test_advantages_have_mean_zero_and_variance_one_over_the_tokens(batch: tuple[list[Tensor], Tensor]) -> None:
    (rewards,), mask = batch
    returns = torch.where(mask, rewards, 0).flip(1).cumsum(1).flip(1)[mask]
    assume(len(returns) > 1 and returns.var() > 0.01)
    advantages = reinforce_plus_plus(rewards, mask)[mask]
    assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages.var().item() == pytest.approx(1, abs=1e-5)


@given(batches(1), UNIT, st.data())
def test_the_order_of_rows_and_padding_mean_nothing(
    batch: tuple[list[Tensor], Tensor], gamma: float, data: st.DataObject
) -> None:
    (rewards,), mask = batch
    order = data.draw(st.permutations(range(len(mask))))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    padded = torch.nn.functional.pad(rewards[order], (left, right), value=NAN)
    padded_mask = torch.nn.functional.pad(mask[order], (left, right), value=False)
    actual = reinforce_plus_plus(padded, padded_mask, gamma=gamma)[:, left : left + mask.shape[1]]
    torch.testing.assert_close(actual, reinforce_plus_plus(rewards, mask, gamma=gamma)[order], rtol=1e-6, atol=1e-6)


def test_gamma_is_one_unless_said() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    assert torch.equal(
        reinforce_plus_plus(rewards, torch.ones(2, 3)), reinforce_plus_plus(rewards, torch.ones(2, 3), gamma=1.0)
    )
    assert not torch.equal(
        reinforce_plus_plus(rewards, torch.ones(2, 3)), reinforce_plus_plus(rewards, torch.ones(2, 3), gamma=0.5)
    )


@pytest.mark.parametrize("mask", [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)])
def test_an_empty_mask_gives_zeros(mask: Tensor) -> None:
    assert reinforce_plus_plus(torch.full((2, 3), NAN), mask).tolist() == [[0.0] * 3] * 2


def test_a_single_token_is_not_whitened() -> None:
    assert reinforce_plus_plus(torch.tensor([[NAN, 5.0]]), torch.tensor([[0, 1]])).tolist() == [[0, 5]]


@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_result_dtype(dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    advantages = reinforce_plus_plus(torch.tensor([[0, 1], [0, 3]], dtype=dtype), torch.ones(2, 2))
    assert advantages.dtype == result_dtype
    assert advantages.isfinite().all()


def test_inputs_are_not_changed_and_the_result_has_no_gradient() -> None:
    rewards, mask = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)
    assert not reinforce_plus_plus(rewards, mask).requires_grad
    assert (rewards._version, mask._version) == (0, 0)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, NAN])
def test_illegal_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=rf"gamma must lie in \[0, 1\], got {gamma}"):
        reinforce_plus_plus(torch.zeros(1, 2), torch.ones(1, 2), gamma=gamma)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_BT has shape \[2\] but rewards_BT has shape \[2, 3\]"):
        reinforce_plus_plus(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"rewards_BT has shape \[3\]; expected \[B, T\]"):
        reinforce_plus_plus(torch.zeros(3), torch.zeros(3))
