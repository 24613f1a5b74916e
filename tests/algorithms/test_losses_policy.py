"""Policy loss against the papers' formulas in plain Python, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from algorithm_cases import INF, NAN, batches, one_token, poison
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.losses import policy_loss, policy_loss_per_token


def ppo_token_loss(
    log_ratio: float, advantage: float, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[float, bool]:
    """Loss of a token, and whether its clipped term is strictly the larger (PPO eq. 7, dual clip eq. 5)."""
    ratio = math.exp(log_ratio)
    clipped_ratio = min(max(ratio, 1 - clip_low), 1 + clip_high)
    objective = min(ratio * advantage, clipped_ratio * advantage)
    clipped = clipped_ratio * advantage < ratio * advantage
    if dual_clip is not None and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective, clipped


CLIPS = st.fixed_dictionaries(
    {
        "clip_low": st.floats(0, 1),
        "clip_high": st.floats(0, 2),
        "dual_clip": st.one_of(st.none(), st.floats(1.01, 5)),
    }
)


@given(batches(4), CLIPS)
def test_policy_loss_matches_the_formula_token_by_token(batch: tuple[list[Tensor], Tensor], clips: dict) -> None:
    (logprobs, old_logprobs, advantages, weights), mask = batch
    fields = [poison(x, mask) for x in (logprobs, old_logprobs, advantages)]
    loss_BT, metrics_BT = policy_loss_per_token(*fields, mask, weights=poison(weights, mask), **clips)
    loss, metrics = policy_loss(*fields, mask, weights=poison(weights, mask), **clips)
    losses, clipped, log_ratios = [], [], []
    for place in torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).tolist():
        place = tuple(place)
        if not mask[place]:
            assert loss_BT[place] == 0
            assert all(metric_BT[place] == 0 for metric_BT in metrics_BT.values())
            continue
        log_ratio = (logprobs[place] - old_logprobs[place]).item()
        token_loss, token_clipped = ppo_token_loss(log_ratio, advantages[place].item(), **clips)
        losses.append(token_loss * weights[place].item())
        clipped.append(token_clipped)
        log_ratios.append(log_ratio)
        assert loss_BT[place].item() == pytest.approx(losses[-1], rel=1e-9, abs=1e-12)
        assert metrics_BT["approx_kl"][place].item() == -log_ratio
    count = max(1, len(losses))
    assert loss.item() == pytest.approx(sum(losses) / count, rel=1e-9, abs=1e-12)
    assert metrics["approx_kl"].item() == pytest.approx(-sum(log_ratios) / count, rel=1e-9, abs=1e-12)
    # A ratio exactly at its bound may round either way.
    assert metrics["clip_frac"].item() == pytest.approx(sum(clipped) / count, abs=1e-9) or any(
        math.isclose(math.exp(x), bound, rel_tol=1e-12)
        for x in log_ratios
        for bound in (1 - clips["clip_low"], 1 + clips["clip_high"])
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.6, 0.0, 1),
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.5, -2.0, 3.0, 3.0, 0),
        (0.5, -2.0, 1.8, 0.0, 1),
        (0.95, -2.0, 1.9, 1.9, 0),
        (1.5, 0.0, 0.0, 0.0, 0),
        (1.0, 2.0, -2.0, -2.0, 0),
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, expected: float, slope: float, clipped: int) -> None:
    """Bounds 0.9 and 1.3. The slope in the log-probability is the unclipped loss if that counts, else 0."""
    logprobs, old_logprobs, advantages, mask = one_token(math.log(ratio) - 1, -1, advantage, 1)
    loss, metrics = policy_loss(logprobs.requires_grad_(), old_logprobs, advantages, mask, clip_low=0.1, clip_high=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logprobs.grad.item() == pytest.approx(slope)
    assert metrics["clip_frac"].item() == clipped
    assert metrics["approx_kl"].item() == pytest.approx(-math.log(ratio))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope", "clipped"),
    [
        (5.0, -2.0, 6.0, 0.0, 0),  # bounded by 3 * 2
        (2.0, -2.0, 4.0, 4.0, 0),  # not yet
        (0.5, -2.0, 1.6, 0.0, 1),  # the ordinary clip
        (5.0, 2.0, -2.4, 0.0, 1),  # positive advantages know no dual clip
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, expected: float, slope: float, clipped: int) -> None:
    """The dual clip bounds the loss and stops the gradient, and does not count in ``clip_frac``."""
    logprobs, old_logprobs, advantages, mask = one_token(math.log(ratio), 0, advantage, 1)
    loss, metrics = policy_loss(logprobs.requires_grad_(), old_logprobs, advantages, mask, dual_clip=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logprobs.grad.item() == pytest.approx(slope)
    assert metrics["clip_frac"].item() == clipped


def test_first_update_has_the_policy_gradient() -> None:
    """At ratio 1 the gradient is -A / count, be the old log-probabilities a copy or the tensor itself."""
    advantages, mask = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1, 1, 0]])
    for copy in (True, False):
        logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
        loss, metrics = policy_loss(logprobs, logprobs.detach().clone() if copy else logprobs, advantages, mask)
        loss.backward()
        assert logprobs.grad.tolist() == [[-0.5, 1.0, 0.0]]
        assert metrics["clip_frac"].item() == metrics["approx_kl"].item() == 0


def test_policy_gradients_match_finite_differences() -> None:
    """Away from the kinks, with every branch taken: unclipped, clipped on both sides, dual clip, masked."""
    log_ratio = torch.tensor([[0.05, 0.9, -0.9, 2.0, 0.3], [0.9, -0.9, 0.05, -0.1, 0.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, 2.0, -1.0, -1.5, 9.0], [-1.0, 1.0, -2.0, 0.5, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]])
    old_logprobs = torch.full_like(log_ratio, -1.0)
    logprobs = (old_logprobs + log_ratio).requires_grad_()
    weights = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for aggregation in ("token_mean", "seq_sum_mean", "seq_mean_mean"):
        assert torch.autograd.gradcheck(
            lambda x, mode=aggregation: policy_loss(
                x, old_logprobs, advantages, mask, dual_clip=3.0, weights=weights, aggregation=mode
            )[0],
            logprobs,
        )


@given(batches(3), CLIPS)
def test_masked_places_of_the_policy_loss_get_zero_gradient(batch: tuple[list[Tensor], Tensor], clips: dict) -> None:
    fields, mask = batch
    clean = [torch.where(mask, x, 0) for x in fields]
    dirty = [poison(x, mask) for x in fields]
    results = []
    for logprobs, old_logprobs, advantages in (clean, dirty):
        logprobs.requires_grad_()
        loss, metrics = policy_loss(logprobs, old_logprobs, advantages, mask.float(), **clips)
        loss.backward()
        results.append([loss.detach(), logprobs.grad, metrics["clip_frac"], metrics["approx_kl"]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[1][1][~mask] == 0).all()


def test_only_logprobs_get_a_gradient() -> None:
    tensors = [torch.full((1, 2), 0.1).requires_grad_() for _ in range(4)]
    logprobs, old_logprobs, advantages, weights = tensors
    policy_loss(logprobs, old_logprobs, advantages, torch.ones(1, 2), weights=weights)[0].backward()
    assert logprobs.grad is not None
    assert old_logprobs.grad is advantages.grad is weights.grad is None


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize(("advantage", "log_ratio"), [(1.0, 500.0), (-1.0, -500.0)])
def test_a_clipped_token_has_zero_gradient_however_far_it_is_off(
    advantage: float, log_ratio: float, dual_clip: float | None
) -> None:
    """The exponential of 500 is infinite in float32; the metric keeps the number as it is."""
    logprobs = torch.tensor([[log_ratio, -1.0]], requires_grad=True)
    loss, metrics = policy_loss(
        logprobs,
        torch.tensor([[0.0, -1.0]]),
        torch.tensor([[advantage, 2.0]]),
        torch.ones(1, 2),
        dual_clip=dual_clip,
    )
    loss.backward()
    assert loss.item() == pytest.approx((-1.2 if advantage > 0 else 0.8) / 2 - 1)
    assert logprobs.grad.tolist() == [[0, -1]]
    assert metrics["approx_kl"].item() == -log_ratio / 2


def test_dual_clip_bounds_a_ratio_that_overflows() -> None:
    logprobs = torch.tensor([[500.0]], requires_grad=True)
    loss, _ = policy_loss(logprobs, torch.zeros(1, 1), -torch.ones(1, 1), torch.ones(1, 1), dual_clip=3.0)
    loss.backward()
    assert (loss.item(), logprobs.grad.item()) == (3, 0)


def test_infinite_upper_clip_leaves_the_ratio_unbounded() -> None:
    logprobs, old_logprobs, advantages, mask = one_token(math.log(100), 0, 1, 1)
    loss, metrics = policy_loss(logprobs, old_logprobs, advantages, mask, clip_low=1.0, clip_high=INF)
    assert loss.item() == pytest.approx(-100)
    assert metrics["clip_frac"].item() == 0


@given(batches(3), st.floats(0.1, 10))
def test_scaling_advantages_or_weights_scales_the_policy_loss(batch: tuple[list[Tensor], Tensor], scale: float) -> None:
    (logprobs, old_logprobs, advantages), mask = batch
    plain, _ = policy_loss(logprobs, old_logprobs, advantages, mask)
    scaled, _ = policy_loss(logprobs, old_logprobs, scale * advantages, mask)
    weights = torch.full_like(logprobs, scale)
    weighted, _ = policy_loss(logprobs, old_logprobs, advantages, mask, weights=weights)
    torch.testing.assert_close(scaled, scale * plain)
    torch.testing.assert_close(weighted, scale * plain)


def test_weights_do_not_change_the_metrics() -> None:
    fields = [
        torch.tensor([[0.5, -0.5, 0.1]]),
        torch.zeros(1, 3),
        torch.tensor([[1.0, -1.0, 1.0]]),
        torch.ones(1, 3),
    ]
    _, plain = policy_loss(*fields)
    _, weighted = policy_loss(*fields, weights=torch.tensor([[0.0, -1.0, 5.0]]))
    assert plain == weighted
    assert plain["clip_frac"].item() == pytest.approx(2 / 3)
    assert plain["approx_kl"].item() == pytest.approx(-0.1 / 3)


def test_metrics_are_token_means_whatever_the_aggregation() -> None:
    """Row 1 has three valid tokens and row 2 has one; the mean over rows would be different."""
    log_ratio = torch.tensor([[1.0, 1.0, 1.0], [0.0, NAN, NAN]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    for aggregation in ("token_mean", "seq_sum_mean", "seq_mean_mean"):
        _, metrics = policy_loss(log_ratio, torch.zeros(2, 3), torch.ones(2, 3), mask, aggregation=aggregation)
        assert metrics["clip_frac"].item() == 0.75
        assert metrics["approx_kl"].item() == -0.75


def test_metrics_are_detached_scalars() -> None:
    logprobs = torch.zeros(2, 3, requires_grad=True)
    loss, metrics = policy_loss(logprobs, torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    assert set(metrics) == {"clip_frac", "approx_kl"}
    assert loss.requires_grad
    for metric in metrics.values():
        assert metric.shape == ()
        assert metric.dtype == torch.float32
        assert not metric.requires_grad
    _, metrics_BT = policy_loss_per_token(logprobs, torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    for metric_BT in metrics_BT.values():
        assert metric_BT.shape == (2, 3)
        assert metric_BT.dtype == torch.float32
        assert not metric_BT.requires_grad


def test_an_empty_mask_gives_zero_loss_and_zero_gradient() -> None:
    x, mask = torch.full((2, 3), NAN, requires_grad=True), torch.zeros(2, 3)
    for aggregation in ("token_mean", "seq_sum_mean", "seq_mean_mean"):
        loss, metrics = policy_loss(x, x, x, mask, aggregation=aggregation)
        loss.backward()
        assert loss.item() == metrics["clip_frac"].item() == metrics["approx_kl"].item() == 0
    assert x.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_result_dtype(dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    x, mask = torch.zeros(1, 2, dtype=dtype), torch.ones(1, 2)
    loss, metrics = policy_loss(x, x, x, mask, weights=x)
    dtypes = {loss.dtype, *(m.dtype for m in metrics.values())}
    assert dtypes == {result_dtype}


@pytest.mark.parametrize("function", [policy_loss, policy_loss_per_token])
@pytest.mark.parametrize(
    ("constant", "value", "message"),
    [
        ("clip_low", -0.1, r"clip_low must lie in \[0, 1\], got -0.1"),
        ("clip_low", 1.1, r"clip_low must lie in \[0, 1\], got 1.1"),
        ("clip_low", NAN, r"clip_low must lie in \[0, 1\], got nan"),
        ("clip_high", -0.1, "clip_high must be at least 0, got -0.1"),
        ("clip_high", NAN, "clip_high must be at least 0, got nan"),
        ("dual_clip", 1.0, "dual_clip must be None or a finite number above 1, got 1.0"),
        ("dual_clip", 0.5, "dual_clip must be None or a finite number above 1, got 0.5"),
        ("dual_clip", INF, "dual_clip must be None or a finite number above 1, got inf"),
        ("dual_clip", NAN, "dual_clip must be None or a finite number above 1, got nan"),
    ],
)
def test_illegal_policy_constants_are_refused(function: Callable, constant: str, value: float, message: str) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=message):
        function(x, x, x, x, **{constant: value})


@pytest.mark.parametrize("function", [policy_loss, policy_loss_per_token])
def test_different_shapes_are_refused(function: Callable) -> None:
    for place, name in enumerate(["old_logprobs", "advantages", "mask"], start=1):
        arguments = [torch.zeros(2, 3) for _ in range(4)]
        arguments[place] = torch.zeros(2, 1)
        with pytest.raises(ValueError, match=rf"{name} has shape \[2, 1\] but logprobs has shape \[2, 3\]"):
            function(*arguments)


def test_weights_of_another_shape_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"weights has shape \[2\] but logprobs has shape \[2, 3\]"):
        policy_loss(x, x, x, x, weights=torch.zeros(2))
