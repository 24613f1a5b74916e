"""Importance weights against figures worked out by hand and a loop over sequences in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_cases import INF, NAN, batches, poison
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.importance import importance_weights

LEVELS, MODES = ["token", "sequence"], ["truncate", "mask"]
CAP = st.floats(0.1, 5)


def weights_of_row(log_ratios: list[float], level: str, mode: str, cap: float) -> list[float]:
    ratios = [math.exp(x) for x in log_ratios]
    if level == "sequence":
        ratios = [math.prod(ratios)] * len(ratios)
    return [min(r, cap) if mode == "truncate" else (0.0 if r > cap else r) for r in ratios]


@pytest.mark.parametrize(
    ("ratios", "level", "mode", "cap", "expected"),
    [
        ([1.0, 1.0], "token", "truncate", 2.0, [1, 1]),
        ([0.5, 3.0, 2.0], "token", "truncate", 2.0, [0.5, 2, 2]),
        ([0.5, 3.0, 2.5], "token", "mask", 2.6, [0.5, 0, 2.5]),
        ([0.01, 100.0], "token", "truncate", 1.0, [0.01, 1]),
        ([0.01, 100.0], "token", "mask", 1.5, [0.01, 0]),
        # At the cap is not above it.
        ([1.0, 1.0], "token", "mask", 1.0, [1, 1]),
        ([1.0, 1.0], "sequence", "mask", 1.0, [1, 1]),
        # A sequence has the product for all its tokens.
        ([0.5, 3.0], "sequence", "truncate", 2.0, [1.5, 1.5]),
        ([2.0, 3.0, 0.5], "sequence", "truncate", 2.0, [2, 2, 2]),
        ([2.0, 3.0, 0.5], "sequence", "mask", 2.0, [0, 0, 0]),
        ([2.0, 3.0, 0.25], "sequence", "mask", 2.0, [1.5, 1.5, 1.5]),
        ([0.1, 0.1], "sequence", "mask", 0.5, [0.01, 0.01]),
        ([4.0, 5.0], "token", "truncate", INF, [4, 5]),
        ([4.0, 5.0], "sequence", "mask", INF, [20, 20]),
    ],
)
def test_by_hand(ratios: list[float], level: str, mode: str, cap: float, expected: list[float]) -> None:
    """Between a prompt and padding of junk."""
    rollout = torch.tensor([[NAN, *(-1.0 for _ in ratios), INF]], dtype=torch.float64)
    train = torch.tensor([[INF, *(math.log(r) - 1 for r in ratios), 3.0]], dtype=torch.float64)
    mask = torch.tensor([[0, *(1 for _ in ratios), 0]])
    weights = importance_weights(train, rollout, mask, level=level, mode=mode, cap=cap)
    assert weights.tolist() == [pytest.approx([0, *expected, 0])]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@given(batch=batches(2), cap=CAP)
def test_matches_a_loop_over_sequences(batch: tuple[list[Tensor], Tensor], level: str, mode: str, cap: float) -> None:
    (train, rollout), mask = batch
    weights = importance_weights(poison(train, mask), poison(rollout, mask), mask, level=level, mode=mode, cap=cap)
    assert (weights[~mask] == 0).all()
    for i, valid in enumerate(mask):
        expected = weights_of_row((train - rollout)[i, valid].tolist(), level, mode, cap)
        on_the_edge = any(math.isclose(w, cap, rel_tol=1e-9) for w in weights[i, valid].tolist())
        assert weights[i, valid].tolist() == pytest.approx(expected, rel=1e-9) or (mode == "mask" and on_the_edge)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@given(batch=batches(2), cap=CAP, data=st.data())
def test_the_order_of_rows_and_padding_mean_nothing(
    batch: tuple[list[Tensor], Tensor], level: str, mode: str, cap: float, data: st.DataObject
) -> None:
    fields, mask = batch
    order = data.draw(st.permutations(range(len(mask))))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    padded = [torch.nn.functional.pad(x[order], (left, right), value=NAN) for x in fields]
    padded_mask = torch.nn.functional.pad(mask[order], (left, right), value=False)
    settings = {"level": level, "mode": mode, "cap": cap}
    actual = importance_weights(*padded, padded_mask, **settings)[:, left : left + mask.shape[1]]
    expected = importance_weights(*fields, mask, **settings)[order]
    near = torch.isclose(torch.maximum(actual, expected), torch.tensor(cap, dtype=torch.float64))
    assert (torch.isclose(actual, expected) | near).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@given(batch=batches(2), cap=CAP)
def test_weights_lie_between_zero_and_the_cap(
    batch: tuple[list[Tensor], Tensor], level: str, mode: str, cap: float
) -> None:
    fields, mask = batch
    weights = importance_weights(*fields, mask, level=level, mode=mode, cap=cap)
    assert ((weights >= 0) & (weights <= cap)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_sampler_that_agrees_gives_ones(level: str, mode: str) -> None:
    logprobs, mask = torch.tensor([[-1.0, -20.0, NAN], [-0.5, NAN, NAN]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights = importance_weights(logprobs, logprobs, mask, level=level, mode=mode, cap=2.0)
    assert weights.tolist() == [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("mode", "expected"), [("truncate", 3), ("mask", 0)])
def test_ratios_that_overflow_are_bounded(level: str, mode: str, expected: float) -> None:
    train, rollout = torch.zeros(1, 3), torch.full((1, 3), -500.0)
    weights = importance_weights(train, rollout, torch.ones(1, 3), level=level, mode=mode, cap=3.0)
    assert weights.tolist() == [[expected] * 3]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_an_empty_mask_gives_zeros(level: str, mode: str) -> None:
    x = torch.full((2, 3), NAN)
    weights = importance_weights(x, x, torch.zeros(2, 3), level=level, mode=mode, cap=2.0)
    assert weights.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_weights_are_constants_in_float32_or_float64(level: str, dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    train = torch.full((1, 3), -1.5, dtype=dtype, requires_grad=True)
    rollout = torch.full((1, 3), -1.0, dtype=dtype, requires_grad=True)
    weights = importance_weights(train, rollout, torch.ones(1, 3), level=level, mode="truncate", cap=2.0)
    assert weights.dtype == result_dtype
    assert not weights.requires_grad
    assert weights.tolist() == [pytest.approx([math.exp(-0.5 if level == "token" else -1.5)] * 3)]
    assert (train._version, rollout._version) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cap": 0.0}, "cap must be above 0, got 0.0"),
        ({"cap": -1.0}, "cap must be above 0, got -1.0"),
        ({"cap": NAN}, "cap must be above 0, got nan"),
        ({"level": "segment"}, "unknown level 'segment'; legal are 'token', 'sequence'"),
        ({"mode": "clip"}, "unknown mode 'clip'; legal are 'truncate', 'mask'"),
    ],
)
def test_illegal_settings_are_refused(settings: dict, message: str) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=message):
        importance_weights(x, x, x, **{"level": "token", "mode": "mask", "cap": 2.0, **settings})


def test_shapes_that_do_not_fit_are_refused() -> None:
    settings = {"level": "token", "mode": "mask", "cap": 2.0}
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"rollout_logprobs has shape \[3\] but train_logprobs has shape \[2, 3\]"):
        importance_weights(x, torch.zeros(3), x, **settings)
    with pytest.raises(ValueError, match=r"mask has shape \[3\] but train_logprobs has shape \[2, 3\]"):
        importance_weights(x, x, torch.zeros(3), **settings)
    with pytest.raises(ValueError, match=r"train_logprobs has shape \[3\]; expected \[B, T\]"):
        importance_weights(*(torch.zeros(3) for _ in range(3)), **settings)
