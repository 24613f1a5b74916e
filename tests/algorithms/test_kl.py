"""KL estimators against the formulas of Schulman's note and the exact KL of small distributions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from chatlearn.algorithms.kl import kl_estimate

LOGPROBS = st.lists(st.floats(-20, 0), min_size=1, max_size=6)


def test_by_hand() -> None:
    """d = log 2 and d = -log 2."""
    logprobs = torch.tensor([math.log(0.5), math.log(0.25)], dtype=torch.float64)
    ref_logprobs = torch.tensor([math.log(0.25), math.log(0.5)], dtype=torch.float64)
    log2 = math.log(2)
    expected = {
        "k1": [log2, -log2],
        "k2": [log2**2 / 2, log2**2 / 2],
        "k3": [0.5 - 1 + log2, 2 - 1 - log2],
        "k1+": [log2, -log2],
        "k3+": [0.5 - 1 + log2, 2 - 1 - log2],
    }
    for estimator, values in expected.items():
        assert kl_estimate(logprobs, ref_logprobs, estimator).tolist() == pytest.approx(values, abs=1e-12)


@given(LOGPROBS, st.randoms(use_true_random=False))
def test_formulas(logprobs: list[float], random: Random) -> None:
    ref_logprobs = [random.uniform(-20, 0) for _ in logprobs]
    formulas = {
        "k1": lambda p, q: p - q,
        "k2": lambda p, q: (p - q) ** 2 / 2,
        "k3": lambda p, q: math.exp(q - p) - 1 - (q - p),
    }
    formulas |= {"k1+": formulas["k1"], "k3+": formulas["k3"]}
    pair = [torch.tensor(x, dtype=torch.float64) for x in (logprobs, ref_logprobs)]
    for estimator, formula in formulas.items():
        expected = [formula(p, q) for p, q in zip(logprobs, ref_logprobs, strict=True)]
        assert kl_estimate(*pair, estimator).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(LOGPROBS)
def test_k2_and_k3_are_never_negative_and_zero_for_equal_distributions(logprobs: list[float]) -> None:
    x = torch.tensor(logprobs)
    for estimator in ("k1", "k2", "k3"):
        assert kl_estimate(x, x, estimator).abs().max() == 0
    for step in (1e-6, -1e-3, 0.5):
        assert (kl_estimate(x + step, x, "k2") >= 0).all()
        assert (kl_estimate(x + step, x, "k3") >= -1e-7).all()


@pytest.fixture
def policy_and_reference() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two distributions over five tokens."""
    policy = torch.tensor([0.3, -1.0, 0.8, 0.0, 1.5], dtype=torch.float64, requires_grad=True)
    return policy, torch.tensor([1.0, 0.2, -0.5, 0.1, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["k1", "k3", "k1+", "k3+"])
def test_expectation_of_the_unbiased_estimators_is_the_kl(policy_and_reference: tuple, estimator: str) -> None:
    policy, reference = policy_and_reference
    logprobs, ref_logprobs = policy.log_softmax(0), reference.log_softmax(0)
    expectation = (logprobs.exp() * kl_estimate(logprobs, ref_logprobs, estimator)).sum()
    exact = kl_divergence(Categorical(logits=policy), Categorical(logits=reference))
    torch.testing.assert_close(expectation, exact)


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [
        ("k1", lambda p, q: 0 * kl_divergence(p, q)),
        ("k2", lambda p, q: kl_divergence(p, q)),
        ("k3", lambda p, q: kl_divergence(q, p)),
        ("k1+", lambda p, q: kl_divergence(p, q)),
        ("k3+", lambda p, q: kl_divergence(p, q)),
    ],
)
def test_expected_gradients_are_those_that_the_docstring_names(
    policy_and_reference: tuple,
    estimator: str,
    divergence: Callable[[Categorical, Categorical], torch.Tensor],
) -> None:
    policy, reference = policy_and_reference
    logprobs, ref_logprobs = policy.log_softmax(0), reference.log_softmax(0)
    sampled = logprobs.exp().detach()
    (actual,) = torch.autograd.grad((sampled * kl_estimate(logprobs, ref_logprobs, estimator)).sum(), policy)
    exact = divergence(Categorical(logits=policy), Categorical(logits=reference))
    (expected,) = torch.autograd.grad(exact, policy)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients_match_finite_differences(estimator: str) -> None:
    pair = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([-1.0, -3.0], [-1.5, -0.2])]
    assert torch.autograd.gradcheck(lambda p, q: kl_estimate(p, q, estimator), pair)


@pytest.mark.parametrize("estimator", ["k1+", "k3+"])
def test_straight_through_estimators_have_the_gradient_of_k2(estimator: str) -> None:
    """That of d^2 / 2 is d, for both arguments, with the sign of each."""
    logprobs, ref_logprobs = (torch.tensor(x, requires_grad=True) for x in ([-1.0, -3.0, -2.0], [-1.5, -0.5, -2.0]))
    kl_estimate(logprobs, ref_logprobs, estimator).sum().backward()
    assert logprobs.grad.tolist() == [0.5, -2.5, 0.0]
    assert ref_logprobs.grad.tolist() == [-0.5, 2.5, 0.0]


def test_k3_keeps_its_digits_near_zero_in_float32() -> None:
    difference = 2.0**-12
    x = torch.tensor([difference])
    expected = difference**2 / 2 - difference**3 / 6
    assert kl_estimate(x, torch.zeros(1), "k3").item() == pytest.approx(expected, rel=2e-3)


def test_nothing_is_clamped() -> None:
    far, zero = torch.tensor([-50.0]), torch.zeros(1)
    assert kl_estimate(far, zero, "k1").item() == -50
    assert kl_estimate(far, zero, "k2").item() == 1250
    assert kl_estimate(far, zero, "k3").item() == pytest.approx(math.exp(50) - 51, rel=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k1+", "k3+"])
def test_nan_stays_where_it_is(estimator: str) -> None:
    result = kl_estimate(torch.tensor([-1.0, float("nan"), -2.0]), torch.tensor([-1.0, -1.0, -2.0]), estimator)
    assert result.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_result_dtype(dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, dtype=dtype)
    for estimator in ("k1", "k2", "k3", "k1+", "k3+"):
        assert kl_estimate(x, x, estimator).dtype == result_dtype
        assert kl_estimate(x, x, estimator).shape == (2, 3)


def test_illegal_arguments_are_refused() -> None:
    x = torch.zeros(2, 3)
    for unknown in ("k4", "k2+", "k1++"):
        message = rf"unknown KL estimator '{re.escape(unknown)}'; legal are 'k1', 'k2', 'k3', 'k1\+', 'k3\+'"
        with pytest.raises(ValueError, match=message):
            kl_estimate(x, x, unknown)
    with pytest.raises(ValueError, match=r"ref_logprobs has shape \[3\] but logprobs has shape \[2, 3\]"):
        kl_estimate(x, torch.zeros(3), "k1")
