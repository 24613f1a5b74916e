"""The adaptive weight of a KL penalty against the paper's two equations."""

from __future__ import annotations

import math

import pytest
import torch
from algorithm_cases import INF, NAN
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.algorithms.kl import AdaptiveKLController

POSITIVE = st.floats(0.01, 10)


@pytest.mark.parametrize(
    ("kl", "num_samples", "expected"),
    [
        # Coefficient 0.5, target 6, horizon 1,000.
        (6.0, 100, 0.5),
        (6.6, 100, 0.5 * (1 + 0.1 * 0.1)),
        (5.4, 100, 0.5 * (1 - 0.1 * 0.1)),
        (60.0, 100, 0.5 * (1 + 0.2 * 0.1)),
        (0.0, 100, 0.5 * (1 - 0.2 * 0.1)),
        (-3.0, 500, 0.5 * (1 - 0.2 * 0.5)),
        (INF, 500, 0.5 * (1 + 0.2 * 0.5)),
        (60.0, 0, 0.5),
    ],
)
def test_by_hand(kl: float, num_samples: int, expected: float) -> None:
    controller = AdaptiveKLController(0.5, 6.0, 1000)
    assert controller.update(kl, num_samples) == pytest.approx(expected)
    assert controller.coef == pytest.approx(expected)


@given(st.lists(st.floats(-5, 20), max_size=20), POSITIVE, POSITIVE, st.floats(0.05, 0.9))
def test_follows_the_papers_recursion(kls: list[float], coef: float, target: float, clip: float) -> None:
    """With a gain of 0.1 for each batch, as in the paper."""
    controller, expected = AdaptiveKLController(coef, target, 10 * 64, clip=clip), coef
    for kl in kls:
        error = max(-clip, min(clip, (kl - target) / target))
        expected = expected * (1 + 0.1 * error)
        assert controller.update(kl, 64) == pytest.approx(expected)
    assert controller.coef > 0


def test_the_weight_settles_where_the_target_is_met() -> None:
    """A policy whose KL falls as its weight rises: 1 / coefficient."""
    controller = AdaptiveKLController(0.05, 4.0, 100)
    for _ in range(500):
        controller.update(1 / controller.coef, 10)
    assert controller.coef == pytest.approx(0.25, rel=1e-3)


def test_the_speed_does_not_depend_on_the_batch_size() -> None:
    """For small gains: 100 batches of 10 or 1,000 of 1."""
    coarse, fine = AdaptiveKLController(1.0, 1.0, 100_000), AdaptiveKLController(1.0, 1.0, 100_000)
    for _ in range(100):
        coarse.update(5.0, 10)
    for _ in range(1000):
        fine.update(5.0, 1)
    assert coarse.coef == pytest.approx(fine.coef, rel=1e-6)
    assert coarse.coef == pytest.approx(math.exp(0.2 * 1000 / 100_000), rel=1e-5)


def test_a_restored_controller_goes_on_where_the_first_was() -> None:
    first = AdaptiveKLController(0.1, 2.0, 100)
    first.update(5.0, 10)
    second = AdaptiveKLController(0.1, 2.0, 100)
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"coef": first.coef}
    assert second.update(0.5, 7) == first.update(0.5, 7)


def test_a_tensor_is_taken_as_its_number() -> None:
    controller = AdaptiveKLController(0.5, 6.0, 1000)
    controller.update(torch.tensor(6.6, dtype=torch.float64), 100)
    assert type(controller.coef) is float
    assert controller.coef == pytest.approx(0.505)


@pytest.mark.parametrize("name", ["coef", "target", "horizon", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
def test_illegal_constants_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got {value}"):
        AdaptiveKLController(**{"coef": 0.1, "target": 6.0, "horizon": 1000, "clip": 0.2, name: value})


def test_what_would_break_the_weight_for_good_is_refused() -> None:
    controller = AdaptiveKLController(0.5, 6.0, 1000)
    with pytest.raises(ValueError, match="kl is NaN: the log-probabilities of the policy or the reference are broken"):
        controller.update(NAN, 10)
    for num_samples in (-1, 5000):
        with pytest.raises(ValueError, match=f"less than horizon / clip = 5000, got {num_samples}; make the horizon"):
            controller.update(1.0, num_samples)
    assert controller.coef == 0.5
