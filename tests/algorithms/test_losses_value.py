"""Value loss against the formula in plain Python, token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from algorithm_cases import NAN, batches, one_token, poison
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.losses import value_loss, value_loss_per_token


def value_token_loss(value: float, old_value: float, target: float, clip: float | None) -> float:
    loss = (value - target) ** 2
    if clip is not None:
        clipped = min(max(value, old_value - clip), old_value + clip)
        loss = max(loss, (clipped - target) ** 2)
    return loss / 2


@given(batches(3), st.one_of(st.none(), st.floats(0.01, 3)))
def test_value_loss_matches_the_formula_token_by_token(batch: tuple[list[Tensor], Tensor], clip: float | None) -> None:
    fields, mask = batch
    dirty = [poison(x, mask) for x in fields]
    loss_BT = value_loss_per_token(*dirty, mask, clip=clip)
    assert (loss_BT[~mask] == 0).all()
    expected = [value_token_loss(*(x[row, t].item() for x in fields), clip) for row, t in mask.nonzero().tolist()]
    assert loss_BT[mask].tolist() == pytest.approx(expected, abs=1e-9)
    mean = sum(expected) / max(1, len(expected))
    assert value_loss(*dirty, mask, clip=clip).item() == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "old_value", "clip", "expected", "slope"),
    [
        (3.0, 9.0, None, 2.0, 2.0),
        (3.0, 3.2, 0.5, 2.0, 2.0),  # within the bound
        (3.0, 5.0, 0.5, 6.125, 0.0),  # clipped to 4.5, farther from the target: counts, without gradient
        (3.0, 1.0, 0.5, 2.0, 2.0),  # clipped to 1.5, nearer to the target: the unclipped error counts
    ],
)
def test_value_clip_by_hand(value: float, old_value: float, clip: float | None, expected: float, slope: float) -> None:
    """The target is 1."""
    values, old_values, returns, mask = one_token(value, old_value, 1, 1)
    loss = value_loss(values.requires_grad_(), old_values, returns, mask, clip=clip)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert values.grad.item() == pytest.approx(slope)


@given(batches(3), st.one_of(st.none(), st.floats(0.01, 3)))
def test_masked_places_of_the_value_loss_get_zero_gradient(
    batch: tuple[list[Tensor], Tensor], clip: float | None
) -> None:
    fields, mask = batch
    results = []
    for change in (lambda x: torch.where(mask, x, 0), lambda x: poison(x, mask)):
        values, old_values, returns = (change(x) for x in fields)
        values.requires_grad_()
        loss = value_loss(values, old_values, returns, mask, clip=clip)
        loss.backward()
        results.append([loss.detach(), values.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[1][1][~mask] == 0).all()


def test_value_gradients_match_finite_differences() -> None:
    """Away from the kinks; inside the bound, and beyond it on either side of the target."""
    values = torch.tensor([[0.1, 2.0, -2.0, 2.0, 5.0]], dtype=torch.float64, requires_grad=True)
    old_values = torch.tensor([[0.0, 0.0, 0.0, 4.0, 5.0]], dtype=torch.float64)
    returns = torch.tensor([[1.0, 3.0, 1.0, 1.0, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    for clip in (None, 0.5):
        assert torch.autograd.gradcheck(lambda v, c=clip: value_loss(v, old_values, returns, mask, clip=c), values)


def test_only_values_get_a_gradient() -> None:
    values, old_values, returns = (torch.full((1, 2), x).requires_grad_() for x in (0.1, 0.2, 0.3))
    value_loss(values, old_values, returns, torch.ones(1, 2), clip=0.05).backward()
    assert values.grad is not None
    assert old_values.grad is returns.grad is None


def test_an_empty_mask_gives_zero_loss_and_zero_gradient() -> None:
    x = torch.full((2, 3), NAN, requires_grad=True)
    loss = value_loss(x, x, x, torch.zeros(2, 3), clip=0.2)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_result_dtype(dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    x = torch.zeros(1, 2, dtype=dtype)
    assert value_loss(x, x, x, torch.ones(1, 2), clip=1.0).dtype == result_dtype


@pytest.mark.parametrize("function", [value_loss, value_loss_per_token])
@pytest.mark.parametrize("clip", [0.0, -0.2, NAN])
def test_illegal_value_clip_is_refused(function: Callable, clip: float) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"clip must be None or above 0, got {clip}"):
        function(x, x, x, x, clip=clip)


@pytest.mark.parametrize("function", [value_loss, value_loss_per_token])
def test_different_shapes_are_refused(function: Callable) -> None:
    for place, name in enumerate(["old_values", "returns", "mask"], start=1):
        arguments = [torch.zeros(2, 3) for _ in range(4)]
        arguments[place] = torch.zeros(2, 1)
        with pytest.raises(ValueError, match=rf"{name} has shape \[2, 1\] but values has shape \[2, 3\]"):
            function(*arguments)
