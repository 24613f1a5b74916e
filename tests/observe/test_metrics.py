"""Reductions against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from chatlearn.errors import ModuleError
from chatlearn.observe.headline import headline
from chatlearn.observe.metrics import MetricBuffer


def test_reductions_by_hand() -> None:
    buffer = MetricBuffer()
    for value, samples in ((1.0, 8), (4.0, 2)):
        buffer.add([(f"m/{reduction}", value, reduction, samples) for reduction in ("mean", "sum", "max", "min")])
    # mean weighs by samples: (1 x 8 + 4 x 2) / 10
    assert buffer.take() == {"m/max": 4.0, "m/mean": 1.6, "m/min": 1.0, "m/sum": 5.0}


def test_taking_empties() -> None:
    buffer = MetricBuffer()
    buffer.add([("a", 1.0, "sum", 1)])
    assert buffer.take() == {"a": 1.0}
    assert buffer.take() == {}


def test_names_are_sorted_and_prefixes_kept_apart() -> None:
    buffer = MetricBuffer()
    buffer.add([("z", 1.0, "mean", 1), ("a", 2.0, "mean", 1)])
    buffer.add([("a", 3.0, "mean", 1)], prefix="eval/")
    assert list(buffer.take().items()) == [("a", 2.0), ("eval/a", 3.0), ("z", 1.0)]


def test_several_values_in_one_call() -> None:
    buffer = MetricBuffer()
    buffer.add([("a", 1.0, "mean", 3), ("a", 2.0, "mean", 3)])
    assert buffer.take() == {"a": 1.5}


def test_calls_without_samples_have_no_weight() -> None:
    buffer = MetricBuffer()
    buffer.add([("empty", 5.0, "mean", 0), ("some", math.nan, "mean", 0), ("some", 2.0, "mean", 4)])
    assert buffer.take() == {"some": 2.0}


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_is_never_hidden(reduction: str, place: int) -> None:
    values = [1.0, 2.0]
    values.insert(place, math.nan)
    buffer = MetricBuffer()
    buffer.add([("a", value, reduction, 1) for value in values])
    assert math.isnan(buffer.take()["a"])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", math.inf), ("sum", math.inf), ("max", math.inf), ("min", 1)]
)
def test_an_infinity_counts_as_a_number(reduction: str, expected: float) -> None:
    buffer = MetricBuffer()
    buffer.add([("a", value, reduction, 1) for value in (1.0, math.inf)])
    assert buffer.take() == {"a": expected}


def test_one_name_with_two_reductions() -> None:
    buffer = MetricBuffer()
    buffer.add([("policy/kl", 1.0, "mean", 1)])
    buffer.add([("policy/kl", 1.0, "max", 1)], prefix="eval/")  # another name
    with pytest.raises(ModuleError, match=r"policy/kl .*'mean' and with 'max'.*another name"):
        buffer.add([("policy/kl", 1.0, "max", 1)])


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"reward/reward": 1.0, "ppo_policy/loss": 2.0}, {"reward": 1.0, "loss": 2.0}),
        ({"ppo_policy/kl": 0.1, "ppo_policy/approx_kl": 0.2}, {"kl": 0.1}),
        ({"a/loss": 1.0, "b/loss": 2.0}, {"loss": 1.0}),
        ({"reward/accuracy": 0.5, "eval/reward/accuracy": 0.75}, {"accuracy": 0.5, "eval accuracy": 0.75}),
        ({"num_samples": 3, "time/loss_seconds": 1.0}, {}),
    ],
)
def test_headline(row: dict[str, float], shown: dict[str, float]) -> None:
    assert headline(row) == shown
