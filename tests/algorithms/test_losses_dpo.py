"""Losses on pairs against figures worked out by hand and the papers' formulas in plain Python, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from algorithm_cases import INF, NAN
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.losses import dpo_loss, dpo_loss_per_pair

LOG2, LOG3 = math.log(2), math.log(3)
SMOOTHED = ["sigmoid", "robust", "exo_pair"]
OTHERS = ["hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down"]
SIXTEENTHS = st.integers(-80, 80).map(lambda n: n / 16)
METRICS = {"chosen_reward", "rejected_reward", "margin", "accuracy"}


def mean_loss(*tensors, **settings):
    """The loss of a batch of pairs, and the means of what is measured of each pair."""
    _, metrics_B = dpo_loss_per_pair(*tensors, **settings)
    means = {name: metric_B.sum() / max(1, len(metric_B)) for name, metric_B in metrics_B.items()}
    return dpo_loss(*tensors, **settings), means


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def exo(c: float, r: float, beta: float, e: float) -> float:
    """KL from the pair of model probabilities to the smoothed labels."""
    q = logistic(beta * (c - r))
    return q * math.log(q / (1 - e)) + (1 - q) * math.log((1 - q) / e)


FORMULAS: dict[str, Callable[[float, float, float, float], float]] = {
    "sigmoid": lambda c, r, beta, e: (
        -(1 - e) * math.log(logistic(beta * (c - r))) - e * math.log(logistic(beta * (r - c)))
    ),
    "robust": lambda c, r, beta, e: (
        (-(1 - e) * math.log(logistic(beta * (c - r))) + e * math.log(logistic(beta * (r - c)))) / (1 - 2 * e)
    ),
    "hinge": lambda c, r, beta, e: max(0, 1 - beta * (c - r)),
    "ipo": lambda c, r, beta, e: (c - r - 1 / (2 * beta)) ** 2,
    "exo_pair": exo,
    "nca_pair": lambda c, r, beta, e: (
        -math.log(logistic(beta * c)) - (math.log(logistic(-beta * c)) + math.log(logistic(-beta * r))) / 2
    ),
    "sppo_hard": lambda c, r, beta, e: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
    "apo_zero": lambda c, r, beta, e: 1 - logistic(beta * c) + logistic(beta * r),
    "apo_down": lambda c, r, beta, e: logistic(beta * c) + 1 - logistic(beta * (c - r)),
}


def pairs(num: int, seed: int = 0) -> list[Tensor]:
    """Chosen, rejected, and the same under the reference."""
    generator = torch.Generator().manual_seed(seed)
    return [-10 * torch.rand(num, dtype=torch.float64, generator=generator) for _ in range(4)]


def smoothing_of(variant: str) -> float:
    return 0.1 if variant in SMOOTHED else 0.0


@pytest.mark.parametrize(
    ("variant", "smoothing", "chosen", "rejected", "beta", "expected"),
    [
        # No preference: s(0) = 1/2.
        ("sigmoid", 0.0, 0.0, 0.0, 0.1, LOG2),
        ("sigmoid", 0.3, 2.0, 2.0, 0.1, LOG2),
        # s(log 3) = 3/4, s(-log 3) = 1/4.
        ("sigmoid", 0.0, LOG3, 0.0, 1.0, math.log(4 / 3)),
        ("sigmoid", 0.0, 0.0, LOG3, 1.0, math.log(4)),
        ("sigmoid", 0.0, 5 * LOG3, 3 * LOG3, 0.5, math.log(4 / 3)),
        ("sigmoid", 0.25, LOG3, 0.0, 1.0, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
        ("robust", 0.0, LOG3, 0.0, 1.0, math.log(4 / 3)),
        ("robust", 0.25, LOG3, 0.0, 1.0, 2 * (0.75 * math.log(4 / 3) - 0.25 * math.log(4))),
        ("robust", 0.25, 0.0, 0.0, 1.0, LOG2),
        ("hinge", 0.0, 0.0, 0.0, 0.1, 1.0),
        ("hinge", 0.0, 3.0, 1.0, 0.25, 0.5),
        ("hinge", 0.0, 1.0, 3.0, 0.25, 1.5),
        ("hinge", 0.0, 9.0, 1.0, 0.25, 0.0),
        ("ipo", 0.0, 0.0, 0.0, 0.1, 25.0),
        ("ipo", 0.0, 3.0, 1.0, 0.25, 0.0),
        ("ipo", 0.0, 1.0, 3.0, 0.25, 16.0),
        # The model's 3/4 and 1/4 are the labels.
        ("exo_pair", 0.25, LOG3, 0.0, 1.0, 0.0),
        ("exo_pair", 0.25, 0.0, 0.0, 1.0, 0.5 * math.log(2 / 3) + 0.5 * LOG2),
        ("exo_pair", 0.25, 0.0, LOG3, 1.0, 0.5 * LOG3),
        ("nca_pair", 0.0, 0.0, 0.0, 1.0, 2 * LOG2),
        ("nca_pair", 0.0, LOG3, -LOG3, 1.0, math.log(4 / 3) + 0.5 * math.log(4) + 0.5 * math.log(4 / 3)),
        ("sppo_hard", 0.0, 0.0, 0.0, 0.5, 2.0),
        ("sppo_hard", 0.0, 1.0, -1.0, 0.5, 0.0),
        ("sppo_hard", 0.0, 2.0, 1.0, 0.25, 9.0),
        ("apo_zero", 0.0, 0.0, 0.0, 1.0, 1.0),
        ("apo_zero", 0.0, LOG3, -LOG3, 1.0, 0.5),
        ("apo_down", 0.0, 0.0, 0.0, 1.0, 1.0),
        ("apo_down", 0.0, -LOG3, -2 * LOG3, 1.0, 0.5),
        ("apo_down", 0.0, LOG3, 0.0, 1.0, 1.0),
    ],
)
def test_by_hand(variant: str, smoothing: float, chosen: float, rejected: float, beta: float, expected: float) -> None:
    """The log-ratios of the pair are given; the reference has -7 and -3."""
    c, r, ref_c, ref_r = (torch.tensor([x], dtype=torch.float64) for x in (chosen - 7, rejected - 3, -7, -3))
    loss, metrics = mean_loss(c, r, ref_c, ref_r, beta=beta, variant=variant, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["chosen_reward"].item() == pytest.approx(beta * chosen, abs=1e-12)
    assert metrics["rejected_reward"].item() == pytest.approx(beta * rejected, abs=1e-12)
    assert metrics["margin"].item() == pytest.approx(beta * (chosen - rejected), abs=1e-12)
    assert metrics["accuracy"].item() == (chosen > rejected)


@pytest.mark.parametrize("variant", FORMULAS)
@given(
    log_ratios=st.lists(st.tuples(SIXTEENTHS, SIXTEENTHS), min_size=1, max_size=4),
    beta=st.floats(0.05, 2),
    smoothing=st.floats(0.001, 0.4),
)
def test_matches_the_formula_pair_by_pair(variant: str, log_ratios: list, beta: float, smoothing: float) -> None:
    smoothing = smoothing if variant in SMOOTHED else 0.0
    c, r = torch.tensor(log_ratios, dtype=torch.float64).T
    settings = {"beta": beta, "variant": variant, "label_smoothing": smoothing}
    zeros = torch.zeros_like(c)
    loss_B, metrics_B = dpo_loss_per_pair(c, r, zeros, zeros, **settings)
    loss, metrics = mean_loss(c, r, zeros, zeros, **settings)
    expected = [FORMULAS[variant](*pair, beta, smoothing) for pair in log_ratios]
    assert loss_B.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-8, abs=1e-9)
    assert metrics["accuracy"].item() == pytest.approx(sum(x > y for x, y in log_ratios) / len(expected))
    assert metrics_B["margin"].tolist() == pytest.approx([beta * (x - y) for x, y in log_ratios], abs=1e-12)


@pytest.mark.parametrize("variant", FORMULAS)
def test_gradients_match_finite_differences(variant: str) -> None:
    chosen, rejected, *references = pairs(5)
    settings = {"beta": 0.3, "variant": variant, "label_smoothing": smoothing_of(variant)}
    assert torch.autograd.gradcheck(
        lambda c, r: mean_loss(c, r, *references, **settings)[0], (chosen.requires_grad_(), rejected.requires_grad_())
    )


@pytest.mark.parametrize("variant", FORMULAS)
def test_a_step_along_the_gradient_prefers_the_chosen_response_more(variant: str) -> None:
    chosen, rejected, *references = [torch.zeros(1, requires_grad=i < 2) for i in range(4)]
    mean_loss(chosen, rejected, *references, beta=0.5, variant=variant, label_smoothing=smoothing_of(variant))[
        0
    ].backward()
    assert (rejected.grad - chosen.grad).item() > 0


@pytest.mark.parametrize("variant", FORMULAS)
def test_only_the_policy_gets_a_gradient(variant: str) -> None:
    tensors = [x.requires_grad_() for x in pairs(3)]
    loss, metrics = mean_loss(*tensors, beta=0.1, variant=variant, label_smoothing=smoothing_of(variant))
    loss.backward()
    assert all(x.grad.abs().sum() > 0 for x in tensors[:2])
    assert tensors[2].grad is tensors[3].grad is None
    assert not any(metric.requires_grad for metric in metrics.values())
    assert set(metrics) == METRICS


@pytest.mark.parametrize("variant", FORMULAS)
@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 0, 4], [1] * 6])
def test_sums_over_micro_batches_give_the_gradient_of_all_pairs(variant: str, sizes: list[int]) -> None:
    settings = {"beta": 0.3, "variant": variant, "label_smoothing": smoothing_of(variant)}
    whole, split = ([x.requires_grad_() for x in pairs(6)] for _ in range(2))
    mean_loss(*whole, **settings)[0].backward()
    for micro in zip(*(x.split(sizes) for x in split), strict=True):
        (dpo_loss_per_pair(*micro, **settings)[0].sum() / 6).backward()
    for a, b in zip(whole[:2], split[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("variant", FORMULAS)
def test_a_pair_does_not_depend_on_the_others_or_their_order(variant: str) -> None:
    settings = {"beta": 0.3, "variant": variant, "label_smoothing": smoothing_of(variant)}
    tensors, order = pairs(6), torch.tensor([4, 0, 5, 2, 1, 3])
    loss_B, _ = dpo_loss_per_pair(*tensors, **settings)
    torch.testing.assert_close(dpo_loss_per_pair(*(x[order] for x in tensors), **settings)[0], loss_B[order])
    torch.testing.assert_close(mean_loss(*(x[:1] for x in tensors), **settings)[0], loss_B[0])


def test_sigmoid_without_smoothing_is_what_one_gets_unless_said() -> None:
    tensors = pairs(4)
    said, _ = mean_loss(*tensors, beta=0.2, variant="sigmoid", label_smoothing=0.0)
    assert torch.equal(mean_loss(*tensors, beta=0.2)[0], said)


def test_far_off_pairs_keep_finite_losses_and_gradients() -> None:
    """The logistic function of 1,000 is 1 in floats, and its logarithm's other side would be log 0."""
    for variant in FORMULAS:
        chosen, rejected = torch.tensor([0.0, 1000.0], requires_grad=True), torch.tensor([1000.0, 0.0])
        loss, _ = mean_loss(
            chosen,
            rejected,
            torch.zeros(2),
            torch.zeros(2),
            beta=1.0,
            variant=variant,
            label_smoothing=smoothing_of(variant),
        )
        loss.backward()
        assert loss.isfinite()
        assert chosen.grad.isfinite().all()


@pytest.mark.parametrize("variant", FORMULAS)
@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_half_precision_is_computed_in_float32(variant: str, dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in pairs(4)]
    settings = {"beta": 0.3, "variant": variant, "label_smoothing": smoothing_of(variant)}
    loss, metrics = mean_loss(*tensors, **settings)
    assert {loss.dtype, *(metric.dtype for metric in metrics.values())} == {result_dtype}
    exact, _ = mean_loss(*(x.double() for x in tensors), **settings)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


def test_no_pairs_give_zero() -> None:
    loss, metrics = mean_loss(*(torch.zeros(0) for _ in range(4)), beta=0.1)
    assert loss.item() == 0
    assert {name: x.item() for name, x in metrics.items()} == dict.fromkeys(METRICS, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be a finite number above 0, got 0.0"),
        ({"beta": -1.0}, "beta must be a finite number above 0, got -1.0"),
        ({"beta": NAN}, "beta must be a finite number above 0, got nan"),
        ({"beta": INF}, "beta must be a finite number above 0, got inf"),
        ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 0.5\), got -0.1"),
        ({"label_smoothing": 0.5}, r"label_smoothing must lie in \[0, 0.5\), got 0.5"),
        ({"label_smoothing": NAN}, r"label_smoothing must lie in \[0, 0.5\), got nan"),
        ({"variant": "kto"}, "unknown DPO variant 'kto'; legal are 'sigmoid', 'hinge', 'ipo', 'robust'"),
        ({"variant": "exo_pair"}, "'exo_pair' needs a label_smoothing above 0, such as 0.001"),
        *(
            ({"variant": variant, "label_smoothing": 0.1}, f"'{variant}' knows no label_smoothing, got 0.1")
            for variant in OTHERS
        ),
    ],
)
@pytest.mark.parametrize("function", [dpo_loss, dpo_loss_per_pair])
def test_illegal_settings_are_refused(function: Callable, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*pairs(2), **{"beta": 0.1, **settings})


def test_shapes_that_do_not_fit_are_refused() -> None:
    good = torch.zeros(2)
    for place, name in enumerate(["rejected", "ref_chosen", "ref_rejected"], start=1):
        arguments = [good] * 4
        arguments[place] = torch.zeros(3)
        with pytest.raises(ValueError, match=rf"{name} has shape \[3\] but chosen has shape \[2\]"):
            mean_loss(*arguments, beta=0.1)
    with pytest.raises(ValueError, match=r"chosen has shape \[2, 3\]; expected \[B\], one log-probability per resp"):
        mean_loss(*[torch.zeros(2, 3)] * 4, beta=0.1)
