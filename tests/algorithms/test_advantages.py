"""GAE against the sum in the paper, written as plain loops over the valid tokens of one row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.algorithms.advantages import gae

NAN, INF = float("nan"), float("inf")
FINITE = st.floats(-10, 10, width=32)
UNIT = st.floats(0, 1)


def gae_of_row(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Schulman et al. 2016, eq. 16: the sum over l of (gamma lambda)^l delta[t+l]."""
    next_values = [*values, 0.0][1:]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, next_values, strict=True)]
    return [
        sum((gamma * lam) ** step * delta for step, delta in enumerate(deltas[start:])) for start in range(len(deltas))
    ]


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[list[bool]]]:
    """Rewards, values and mask, as lists of rows."""
    num_tokens = draw(st.integers(1, 7))

    def rows(elements: st.SearchStrategy) -> list[list]:
        return draw(
            st.lists(
                st.lists(elements, min_size=num_tokens, max_size=num_tokens),
                min_size=num_rows,
                max_size=num_rows,
            )
        )

    num_rows = draw(st.integers(1, 3))
    return rows(FINITE), rows(FINITE), rows(st.booleans())


def tensors(rewards: list, values: list, mask: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rollout in float64 with NaN at masked places."""
    valid = torch.tensor(mask)
    poison = torch.tensor(NAN, dtype=torch.float64)
    return (
        torch.where(valid, torch.tensor(rewards, dtype=torch.float64), poison),
        torch.where(valid, torch.tensor(values, dtype=torch.float64), poison),
        valid,
    )


def test_by_hand() -> None:
    """gamma = lambda = 0.5; deltas from the last token: 1 - 3 = -2; 0.5 * 3 - 2 = -0.5; 0.5 * 2 - 1 = 0."""
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-0.25, -1.0, -2.0]]
    assert returns.tolist() == [[0.75, 1.0, 1.0]]


def test_prompt_padding_and_tool_tokens_are_no_steps() -> None:
    """The row of ``test_by_hand`` with a prompt before, two tool tokens between and padding after."""
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0]])
    rewards = torch.tensor([[9.0, 0.0, NAN, 5.0, 0.0, 1.0, INF]])
    values = torch.tensor([[9.0, 1.0, 7.0, NAN, 2.0, 3.0, -INF]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0, -0.25, 0, 0, -1.0, -2.0, 0]]
    assert returns.tolist() == [[0, 0.75, 0, 0, 1.0, 1.0, 0]]


@given(rollouts(), UNIT, UNIT)
def test_matches_the_papers_sum_over_valid_tokens(rollout: tuple, gamma: float, lam: float) -> None:
    advantages, returns = gae(*tensors(*rollout), gamma=gamma, lam=lam)
    for row, (rewards, values, mask) in enumerate(zip(*rollout, strict=True)):
        places = [t for t, valid in enumerate(mask) if valid]
        expected = gae_of_row([rewards[t] for t in places], [values[t] for t in places], gamma, lam)
        expected_row = [0.0] * len(mask)
        for t, advantage in zip(places, expected, strict=True):
            expected_row[t] = advantage
        assert advantages[row].tolist() == pytest.approx(expected_row, abs=1e-9)
        expected_returns = [a + v if m else 0.0 for a, v, m in zip(expected_row, values, mask, strict=True)]
        assert returns[row].tolist() == pytest.approx(expected_returns, abs=1e-9)


@given(rollouts(), UNIT, UNIT, st.data())
def test_inserted_invalid_tokens_change_nothing(rollout: tuple, gamma: float, lam: float, data: st.DataObject) -> None:
    rewards, values, mask = tensors(*rollout)
    num_tokens = mask.shape[1]
    places = sorted(data.draw(st.sets(st.integers(0, 2 * num_tokens), min_size=num_tokens, max_size=num_tokens)))
    wide = [torch.full((mask.shape[0], 2 * num_tokens + 1), fill) for fill in (INF, -INF, 0.0)]
    wide = [to.to(x.dtype) for to, x in zip(wide, (rewards, values, mask), strict=True)]
    for to, x in zip(wide, (rewards, values, mask), strict=True):
        to[:, places] = x
    for expected, actual in zip(
        gae(rewards, values, mask, gamma=gamma, lam=lam), gae(*wide, gamma=gamma, lam=lam), strict=True
    ):
        assert torch.equal(actual[:, places], expected)
        inserted = [t for t in range(actual.shape[1]) if t not in places]
        assert (actual[:, inserted] == 0).all()


@given(rollouts(), UNIT, UNIT, st.floats(-4, 4))
def test_scaling_rewards_and_values_scales_advantages_and_returns(
    rollout: tuple, gamma: float, lam: float, scale: float
) -> None:
    rewards, values, mask = tensors(*rollout)
    plain = gae(rewards, values, mask, gamma=gamma, lam=lam)
    scaled = gae(scale * rewards, scale * values, mask, gamma=gamma, lam=lam)
    for expected, actual in zip(plain, scaled, strict=True):
        torch.testing.assert_close(actual, scale * expected, rtol=1e-9, atol=1e-9)


@given(rollouts(), UNIT, UNIT)
def test_a_row_does_not_depend_on_the_others(rollout: tuple, gamma: float, lam: float) -> None:
    rewards, values, mask = tensors(*rollout)
    whole = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(len(mask)):
        one = slice(row, row + 1)
        alone = gae(rewards[one], values[one], mask[one], gamma=gamma, lam=lam)
        assert all(torch.equal(a[0], w[row]) for a, w in zip(alone, whole, strict=True))


@given(rollouts(), UNIT)
def test_lambda_one_gives_discounted_returns(rollout: tuple, gamma: float) -> None:
    rewards, values, mask = tensors(*rollout)
    _, returns = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    for row in range(len(mask)):
        total = 0.0
        for t in reversed(range(mask.shape[1])):
            if mask[row, t]:
                total = rewards[row, t].item() + gamma * total
                assert returns[row, t].item() == pytest.approx(total, abs=1e-9)


def test_long_rows_keep_the_order_of_their_tokens() -> None:
    """Long enough for a sort that would mix up equal keys."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(2, 1000, dtype=torch.float64, generator=generator)
    mask = torch.rand(2, 1000, generator=generator) < 0.7
    _, returns = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
    to_go = torch.where(mask, rewards, 0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, to_go, 0))


def test_lambda_zero_gives_one_step_residuals() -> None:
    advantages, _ = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]]), torch.ones(1, 2), gamma=0.5, lam=0.0)
    assert advantages.tolist() == [[1.0 + 10.0 - 10.0, 2.0 - 20.0]]


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_a_row_without_valid_tokens_is_zero(mask_dtype: torch.dtype) -> None:
    x = torch.full((2, 3), NAN)
    advantages, returns = gae(x, x, torch.zeros(2, 3, dtype=mask_dtype), gamma=1.0, lam=0.95)
    assert advantages.tolist() == returns.tolist() == [[0.0] * 3] * 2


def test_nan_at_masked_places_reaches_no_gradient() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 0]])
    rewards = torch.tensor([[NAN, 1.0, INF, 2.0, NAN]], requires_grad=True)
    values = torch.tensor([[NAN, 0.5, -INF, 0.25, NAN]], requires_grad=True)
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    (advantages.sum() + returns.sum()).backward()
    # A1 = r1 + V3 / 2 - V1 + A3 / 4 and A3 = r3 - V3; returns add V1 and V3.
    assert rewards.grad.tolist() == [[0, 2, 0, 2.5, 0]]
    assert values.grad.tolist() == [[0, -1, 0, -0.5, 0]]


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 1, 0]])
    rewards, values = (torch.randn(2, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda r, v: gae(r, v, mask, gamma=0.9, lam=0.8), (rewards, values))


@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_result_dtype(dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    x = torch.ones(1, 2, dtype=dtype)
    assert [y.dtype for y in gae(x, x, torch.ones(1, 2), gamma=1.0, lam=1.0)] == [result_dtype] * 2


def test_inputs_are_not_changed() -> None:
    rewards, values, mask = torch.ones(1, 3), torch.ones(1, 3), torch.tensor([[1, 0, 1]])
    gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert [x._version for x in (rewards, values, mask)] == [0, 0, 0]


@pytest.mark.parametrize("name", ["gamma", "lam"])
@pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
def test_illegal_constants_are_refused(name: str, value: float) -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {value}"):
        gae(x, x, x, **{"gamma": 1.0, "lam": 1.0, name: value})


def test_different_shapes_are_refused() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"values_BT has shape \[2, 1\] but rewards_BT has shape \[2, 3\]"):
        gae(x, torch.ones(2, 1), x, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"mask_BT has shape \[3\] but rewards_BT has shape \[2, 3\]"):
        gae(x, x, torch.ones(3), gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"rewards_BT has shape \[3\]; expected \[B, T\]"):
        gae(torch.ones(3), torch.ones(3), torch.ones(3), gamma=1.0, lam=1.0)
