"""What holds for every policy loss: gradients, masks, weights, splitting, dtypes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from algorithm_cases import INF, NAN, batches, poison
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.losses import (
    aggregate,
    aggregate_count,
    aggregate_sum,
    cispo_loss,
    cispo_loss_per_token,
    gspo_loss,
    gspo_loss_per_token,
    policy_loss,
    policy_loss_per_token,
    sapo_loss,
    sapo_loss_per_token,
)


class Loss(NamedTuple):
    batch: Callable
    per_token: Callable
    aggregation: str
    metrics: set[str]


CLIPS = {"clip_low": 0.2, "clip_high": 0.3}
METRICS = {"clip_frac", "approx_kl"}
LOSSES = {
    "ppo": Loss(partial(policy_loss, **CLIPS), partial(policy_loss_per_token, **CLIPS), "token_mean", METRICS),
    "gspo": Loss(partial(gspo_loss, **CLIPS), partial(gspo_loss_per_token, **CLIPS), "seq_mean_mean", METRICS),
    "cispo": Loss(partial(cispo_loss, **CLIPS), partial(cispo_loss_per_token, **CLIPS), "token_mean", METRICS),
    "sapo": Loss(sapo_loss, sapo_loss_per_token, "seq_mean_mean", {*METRICS, "gate"}),
}
MODES = ["token_mean", "seq_sum_mean", "seq_mean_mean"]
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def assert_equal(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]], **tolerance: float) -> None:
    torch.testing.assert_close(a[0], b[0], **tolerance)
    torch.testing.assert_close(a[1], b[1], **tolerance)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, old ones, advantages, weights, and a mask with rows of 5, 1, 3, 0, 2 and 4 tokens."""
    generator = torch.Generator().manual_seed(3)
    logprobs, old_logprobs, advantages = torch.randn(3, 6, 5, dtype=torch.float64, generator=generator)
    weights = torch.rand(6, 5, dtype=torch.float64, generator=generator)
    return logprobs, old_logprobs, advantages, weights, torch.arange(5) < torch.tensor([[5], [1], [3], [0], [2], [4]])


@pytest.mark.parametrize("aggregation", MODES)
@pytest.mark.parametrize(
    "function",
    [
        partial(policy_loss, clip_low=0.2, clip_high=0.3),
        partial(policy_loss, clip_low=0.2, clip_high=0.3, dual_clip=1.5),
        partial(gspo_loss, clip_low=0.2, clip_high=0.3),
        partial(gspo_loss, clip_low=1.0, clip_high=INF),
        # The weight of a token is a constant, so finite differences see the gradient where it is at a bound.
        partial(cispo_loss, clip_low=0.0, clip_high=0.0),
        partial(cispo_loss, clip_low=0.01, clip_high=0.01),
        sapo_loss,
        partial(sapo_loss, tau_pos=2.0, tau_neg=0.5),
    ],
)
def test_gradients_match_finite_differences(function: Callable, aggregation: str, batch: tuple) -> None:
    """Log-ratios between -3 and 3, advantages of either sign, tokens within the bounds and beyond them."""
    logprobs, old_logprobs, advantages, weights, mask = batch
    assert ((logprobs - old_logprobs).exp() - 1).abs()[mask].min() > 0.011
    assert torch.autograd.gradcheck(
        lambda x: function(x, old_logprobs, advantages, mask, weights=weights, aggregation=aggregation)[0],
        logprobs.requires_grad_(),
    )


@each_loss
@given(batch=batches(4))
def test_what_stands_at_masked_places_reaches_nothing(loss: Loss, batch: tuple[list[Tensor], Tensor]) -> None:
    fields, mask = batch
    results = []
    for change in (lambda x: torch.where(mask, x, 0), lambda x: poison(x, mask)):
        logprobs, old_logprobs, advantages, weights = map(change, fields)
        logprobs.requires_grad_()
        value, metrics = loss.batch(logprobs, old_logprobs, advantages, mask.float(), weights=weights)
        value.backward()
        results.append([value.detach(), logprobs.grad, *metrics.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[1][1][~mask] == 0).all()
    assert all(x.isfinite().all() for x in results[1])


@each_loss
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.float32])
def test_an_empty_mask_gives_zero_loss_and_zero_gradient(loss: Loss, mask_dtype: torch.dtype) -> None:
    x, mask = torch.full((2, 3), NAN, requires_grad=True), torch.zeros(2, 3, dtype=mask_dtype)
    for aggregation in MODES:
        value, metrics = loss.batch(x, x, x, mask, aggregation=aggregation, weights=x)
        value.backward()
        assert value.item() == 0
        assert {name: metric.item() for name, metric in metrics.items()} == dict.fromkeys(loss.metrics, 0)
    assert x.grad.tolist() == [[0.0] * 3] * 2


@each_loss
def test_an_empty_batch_gives_zero(loss: Loss) -> None:
    x = torch.zeros(0, 3)
    assert loss.batch(x, x, x, x)[0].item() == 0


@each_loss
@given(batch=batches(3), data=st.data())
def test_the_order_of_rows_and_padding_mean_nothing(
    loss: Loss, batch: tuple[list[Tensor], Tensor], data: st.DataObject
) -> None:
    fields, mask = batch
    order = data.draw(st.permutations(range(len(mask))))
    left, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    pad = partial(torch.nn.functional.pad, pad=(left, right))
    actual = loss.batch(*(pad(x[order], value=INF) for x in fields), pad(mask[order], value=False))
    assert_equal(actual, loss.batch(*fields, mask))


@each_loss
@given(batch=batches(4))
def test_a_row_does_not_depend_on_the_others(loss: Loss, batch: tuple[list[Tensor], Tensor]) -> None:
    (*fields, weights), mask = batch
    whole, whole_metrics = loss.per_token(*fields, mask, weights=weights)
    for row in range(len(mask)):
        one = slice(row, row + 1)
        alone, metrics = loss.per_token(*(x[one] for x in fields), mask[one], weights=weights[one])
        assert_equal((alone, metrics), (whole[one], {name: metric[one] for name, metric in whole_metrics.items()}))


@each_loss
@pytest.mark.parametrize("aggregation", [*MODES, "constant"])
@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 0, 4], [1] * 6])
def test_the_gradient_of_a_minibatch_does_not_depend_on_its_micro_batches(
    loss: Loss, aggregation: str, sizes: list[int], batch: tuple
) -> None:
    """What a trainer does, against one call over all rows."""
    logprobs, old_logprobs, advantages, weights, mask = batch
    whole, split = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    loss_BT, _ = loss.per_token(whole, old_logprobs, advantages, mask, weights=weights)
    aggregate(loss_BT, mask, aggregation, max_length=7).backward()

    count = aggregate_count(mask, aggregation, max_length=7).clamp(min=1)
    totals = dict.fromkeys(loss.metrics, torch.zeros((), dtype=torch.float64))
    fields = (x.split(sizes) for x in (split, old_logprobs, advantages, mask, weights))
    for *micro, micro_weights in zip(*fields, strict=True):
        loss_BT, metrics_BT = loss.per_token(*micro, weights=micro_weights)
        (aggregate_sum(loss_BT, micro[3], aggregation) / count).backward()
        totals = {name: total + metrics_BT[name].sum() for name, total in totals.items()}
    torch.testing.assert_close(split.grad, whole.grad)
    _, metrics = loss.batch(logprobs, old_logprobs, advantages, mask)
    torch.testing.assert_close({name: total / mask.sum() for name, total in totals.items()}, metrics)


@each_loss
@pytest.mark.parametrize("aggregation", MODES)
def test_the_loss_of_a_batch_is_the_aggregate_of_its_tokens(loss: Loss, aggregation: str, batch: tuple) -> None:
    *fields, weights, mask = batch
    loss_BT, _ = loss.per_token(*fields, mask, weights=weights)
    value, _ = loss.batch(*fields, mask, weights=weights, aggregation=aggregation)
    assert torch.equal(value, aggregate(loss_BT, mask, aggregation))
    if aggregation == loss.aggregation:
        assert torch.equal(value, loss.batch(*fields, mask, weights=weights)[0])


@each_loss
def test_only_logprobs_get_a_gradient(loss: Loss) -> None:
    tensors = [torch.full((1, 2), 0.1).requires_grad_() for _ in range(4)]
    logprobs, old_logprobs, advantages, weights = tensors
    loss.batch(logprobs, old_logprobs, advantages, torch.ones(1, 2), weights=weights)[0].backward()
    assert logprobs.grad.abs().min() > 0
    assert old_logprobs.grad is advantages.grad is weights.grad is None


@each_loss
def test_the_first_update_has_the_policy_gradient(loss: Loss) -> None:
    """At ratio 1 all of them have the gradient -A / count, be the old log-probabilities a copy or the tensor itself."""
    advantages, mask = torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([[1, 1, 0]])
    for copy in (True, False):
        logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
        value, metrics = loss.batch(logprobs, logprobs.detach().clone() if copy else logprobs, advantages, mask)
        value.backward()
        assert logprobs.grad.tolist() == [[-1.0, -1.0, 0.0]]
        assert metrics["clip_frac"].item() == metrics["approx_kl"].item() == 0


@each_loss
@given(batch=batches(3), scale=st.floats(0.1, 10))
def test_scaling_advantages_or_weights_scales_the_loss(
    loss: Loss, batch: tuple[list[Tensor], Tensor], scale: float
) -> None:
    (logprobs, old_logprobs, advantages), mask = batch
    plain, metrics = loss.batch(logprobs, old_logprobs, advantages, mask)
    scaled, _ = loss.batch(logprobs, old_logprobs, scale * advantages, mask)
    weighted, weighted_metrics = loss.batch(
        logprobs, old_logprobs, advantages, mask, weights=torch.full_like(logprobs, scale)
    )
    torch.testing.assert_close(scaled, scale * plain)
    torch.testing.assert_close(weighted, scale * plain)
    assert metrics == weighted_metrics


@each_loss
@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_half_precision_is_computed_in_float32(
    loss: Loss, dtype: torch.dtype, result_dtype: torch.dtype, batch: tuple
) -> None:
    *fields, weights, mask = (x.to(dtype) for x in batch)
    logprobs = fields[0].requires_grad_()
    value, metrics = loss.batch(*fields, mask, weights=weights)
    value.backward()
    assert {value.dtype, *(metric.dtype for metric in metrics.values())} == {result_dtype}
    assert logprobs.grad.dtype == dtype
    exact, exact_metrics = loss.batch(*(x.double() for x in fields), mask, weights=weights.double())
    actual = value.double(), {name: x.double() for name, x in metrics.items()}
    assert_equal(actual, (exact, exact_metrics), rtol=1e-5, atol=1e-6)


@each_loss
def test_metrics_are_detached(loss: Loss, batch: tuple) -> None:
    *fields, _, mask = batch
    fields[0].requires_grad_()
    value, metrics = loss.batch(*fields, mask)
    loss_BT, metrics_BT = loss.per_token(*fields, mask)
    assert value.requires_grad
    assert loss_BT.requires_grad
    assert set(metrics) == set(metrics_BT) == loss.metrics
    assert [x.shape for x in metrics.values()] == [()] * len(metrics)
    assert [x.shape for x in metrics_BT.values()] == [mask.shape] * len(metrics)
    assert not any(x.requires_grad for x in (*metrics.values(), *metrics_BT.values()))


@each_loss
def test_inputs_are_not_changed(loss: Loss, batch: tuple) -> None:
    *fields, weights, mask = batch
    loss.batch(*fields, mask, weights=weights)
    assert [x._version for x in batch] == [0] * 5


@pytest.mark.parametrize("function", [gspo_loss, gspo_loss_per_token, cispo_loss, cispo_loss_per_token])
@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"clip_low": -0.1, "clip_high": 0.2}, r"clip_low must lie in \[0, 1\], got -0.1"),
        ({"clip_low": 1.1, "clip_high": 0.2}, r"clip_low must lie in \[0, 1\], got 1.1"),
        ({"clip_low": NAN, "clip_high": 0.2}, r"clip_low must lie in \[0, 1\], got nan"),
        ({"clip_low": 0.2, "clip_high": -0.1}, "clip_high must be at least 0, got -0.1"),
        ({"clip_low": 0.2, "clip_high": NAN}, "clip_high must be at least 0, got nan"),
    ],
)
def test_illegal_bounds_are_refused(function: Callable, constants: dict, message: str) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=message):
        function(x, x, x, x, **constants)


@each_loss
def test_different_shapes_are_refused(loss: Loss) -> None:
    for function in (loss.batch, loss.per_token):
        for place, name in enumerate(["old_logprobs", "advantages", "mask"], start=1):
            arguments = [torch.zeros(2, 3) for _ in range(4)]
            arguments[place] = torch.zeros(2)
            with pytest.raises(ValueError, match=rf"{name} has shape \[2\] but logprobs has shape \[2, 3\]"):
                function(*arguments)
        with pytest.raises(ValueError, match=r"weights has shape \[2\] but logprobs has shape \[2, 3\]"):
            function(*(torch.zeros(2, 3) for _ in range(4)), weights=torch.zeros(2))


@each_loss
def test_illegal_combinations_with_an_aggregation_are_refused(loss: Loss) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"needs a max_length above 0, got None .* call the per-token loss, then agg"):
        loss.batch(x, x, x, x, aggregation="constant")
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        loss.batch(x, x, x, x, aggregation="mean")
