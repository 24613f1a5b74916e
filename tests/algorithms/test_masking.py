"""Masked statistics against numpy on the valid entries alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chatlearn.algorithms.masking import masked_mean, masked_var, masked_whiten

Function: TypeAlias = Callable[..., torch.Tensor]
FUNCTIONS = [masked_mean, masked_var, masked_whiten]
NAN, INF = float("nan"), float("inf")


@st.composite
def masked_arrays(draw: st.DrawFn, min_valid: int = 0) -> tuple[np.ndarray, np.ndarray]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 6)))
    x = draw(hnp.arrays(np.float64, shape, elements=st.floats(-100, 100, width=32)))
    mask = draw(hnp.arrays(np.bool_, shape))
    mask.ravel()[: max(0, min_valid)] = True
    return x, mask


def poisoned(x: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Valid entries of ``x``, NaN and infinities elsewhere."""
    junk = np.resize([NAN, INF, -INF], x.shape)
    return torch.from_numpy(np.where(mask, x, junk))


@given(masked_arrays())
def test_mean_and_variance_are_those_of_the_valid_entries(case: tuple[np.ndarray, np.ndarray]) -> None:
    x, mask = case
    valid = x[mask]
    tensor, mask_tensor = poisoned(x, mask), torch.from_numpy(mask)
    expected_mean = valid.mean() if valid.size else 0.0
    assert masked_mean(tensor, mask_tensor).item() == pytest.approx(expected_mean, abs=1e-9)
    for ddof in (0, 1):
        expected_var = valid.var(ddof=ddof) if valid.size > ddof else 0.0
        assert masked_var(tensor, mask_tensor, ddof=ddof).item() == pytest.approx(expected_var, abs=1e-9)


def mean_of_numbers(x: np.ndarray) -> float:
    numbers = x[~np.isnan(x)]
    return numbers.mean() if numbers.size else 0.0


@given(masked_arrays())
def test_mean_along_a_dimension(case: tuple[np.ndarray, np.ndarray]) -> None:
    x, mask = case
    for dim in (0, 1, -1):
        expected = np.apply_along_axis(mean_of_numbers, dim, np.where(mask, x, NAN))
        actual = masked_mean(poisoned(x, mask), torch.from_numpy(mask), dim=dim)
        np.testing.assert_allclose(actual.numpy(), expected, atol=1e-9)


def test_mean_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)
    assert masked_mean(x, mask, dim=1).tolist() == [1.5, 4.0]
    assert masked_mean(x, mask, dim=0).tolist() == [2.5, 2.0, 0.0]


def test_variance_is_the_sample_variance_by_default() -> None:
    x, mask = torch.tensor([1.0, 3.0, NAN]), torch.tensor([1.0, 1.0, 0.0])
    assert masked_var(x, mask).item() == 2.0
    assert masked_var(x, mask, ddof=0).item() == 1.0


def test_variance_of_fewer_than_ddof_plus_one_entries_is_zero() -> None:
    x = torch.tensor([5.0, NAN])
    assert masked_var(x, torch.tensor([1, 0])).item() == 0.0
    assert masked_var(x, torch.tensor([0, 0])).item() == 0.0
    assert masked_var(x, torch.tensor([0, 0]), ddof=0).item() == 0.0


def test_variance_keeps_its_digits_beside_a_large_mean() -> None:
    x = torch.tensor([1e4, 1e4 + 1, 1e4 + 2])
    assert masked_var(x, torch.ones(3)).item() == pytest.approx(1.0, rel=1e-5)


@given(masked_arrays(min_valid=2))
def test_whitening_divides_by_the_root_of_sample_variance_plus_epsilon(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    x, mask = case
    if mask.sum() < 2:
        return
    valid = x[mask]
    scale = np.sqrt(valid.var(ddof=1) + 1e-8)
    shifted = masked_whiten(poisoned(x, mask), torch.from_numpy(mask)).numpy()
    kept = masked_whiten(poisoned(x, mask), torch.from_numpy(mask), shift_mean=False).numpy()
    np.testing.assert_allclose(shifted[mask], (valid - valid.mean()) / scale, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kept[mask], (valid - valid.mean()) / scale + valid.mean(), rtol=1e-6, atol=1e-6)
    assert (shifted[~mask] == 0).all()
    assert (kept[~mask] == 0).all()


def test_whitening_by_hand() -> None:
    x = torch.tensor([[1.0, NAN, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1]])
    root = 2**0.5
    expected = torch.tensor([[-1 / root, 0, 1 / root]], dtype=torch.float64)
    torch.testing.assert_close(masked_whiten(x, mask), expected, rtol=1e-7, atol=0)
    shifted_back = torch.tensor([[2 - 1 / root, 0, 2 + 1 / root]], dtype=torch.float64)
    torch.testing.assert_close(masked_whiten(x, mask, shift_mean=False), shifted_back, rtol=1e-7, atol=0)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_leaves_fewer_than_two_entries_as_they_are(shift_mean: bool) -> None:
    x = torch.tensor([NAN, 5.0, NAN])
    assert masked_whiten(x, torch.tensor([0, 1, 0]), shift_mean=shift_mean).tolist() == [0, 5, 0]
    assert masked_whiten(x, torch.tensor([0, 0, 0]), shift_mean=shift_mean).tolist() == [0, 0, 0]


def test_whitening_equal_entries_gives_zero_not_nan() -> None:
    assert masked_whiten(torch.full((2, 3), 4.0), torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2


@given(masked_arrays(min_valid=2), st.randoms(use_true_random=False))
def test_whitening_commutes_with_permutations_of_the_entries(
    case: tuple[np.ndarray, np.ndarray], random: Random
) -> None:
    x, mask = case
    order = list(range(x.size))
    random.shuffle(order)
    tensor, mask_tensor = poisoned(x, mask).flatten(), torch.from_numpy(mask).flatten()
    permuted = masked_whiten(tensor[order], mask_tensor[order])
    torch.testing.assert_close(permuted, masked_whiten(tensor, mask_tensor)[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_any_mask_dtype_means_the_same(function: Function, mask_dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, NAN, 3.0], [-2.0, 0.5, INF]])
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    torch.testing.assert_close(function(x, mask.to(mask_dtype)), function(x, mask))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
    ],
)
def test_result_dtype(function: Function, dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    result = function(torch.tensor([0, 1, 1]).to(dtype), torch.ones(3))
    assert result.dtype == result_dtype


def test_mean_of_many_half_precision_entries_neither_overflows_nor_rounds() -> None:
    """The sum is beyond float16 and the count is no float16 or bfloat16 number."""
    x = torch.ones(70_001, dtype=torch.float16)
    assert masked_mean(x, torch.ones(70_001)).item() == 1.0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_masked_places_get_zero_gradient_and_spoil_no_other(function: Function) -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    clean = torch.tensor([[1.0, 0, 4.0], [0, -3.0, 0]], dtype=torch.float64, requires_grad=True)
    dirty = torch.where(mask, clean.detach(), torch.tensor([NAN, INF, -INF])).requires_grad_()
    weights = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    for x in (clean, dirty):
        (function(x, mask) * weights).sum().backward()
    assert (dirty.grad[~mask] == 0).all()
    torch.testing.assert_close(dirty.grad, torch.where(mask, clean.grad, 0))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_match_finite_differences(function: Function) -> None:
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    x = torch.tensor([[0.3, 9.0, -1.0], [2.0, 0.7, 9.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, mask), x)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradient_of_an_empty_mask_is_zero(function: Function) -> None:
    x = torch.tensor([1.0, NAN], requires_grad=True)
    function(x, torch.zeros(2)).sum().backward()
    assert x.grad.tolist() == [0, 0]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_different_shapes_are_refused(function: Function) -> None:
    with pytest.raises(ValueError, match=r"mask has shape \[3\] but x has shape \[2, 3\]"):
        function(torch.ones(2, 3), torch.ones(3))


@pytest.mark.parametrize("ddof", [-1, 2, 0.5])
def test_illegal_ddof_is_refused(ddof: int) -> None:
    with pytest.raises(ValueError, match=rf"ddof must be 0 or 1, got {ddof}"):
        masked_var(torch.ones(3), torch.ones(3), ddof=ddof)
