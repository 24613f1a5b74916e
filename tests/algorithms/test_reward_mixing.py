"""Combined rewards against numbers worked out by hand, a plain loop, and the batch whitening of GDPO."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import tensor

from chatlearn.algorithms.advantages import reinforce_plus_plus_baseline
from chatlearn.algorithms.reward_mixing import combine_rewards

NAN = math.nan
MODES = ("sum_then_normalize", "normalize_then_sum")


def numbers(tensor_B: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(x) else x for x in tensor_B.tolist()]


def normalised_by_loop(rewards: list[float], groups: list[int], known: list[bool], eps: float) -> list[float]:
    """(reward - mean) / (std + eps) in each group, over the known ones; 0 where one is alone."""
    result = []
    for reward, group, is_known in zip(rewards, groups, known, strict=True):
        others = [r for r, g, k in zip(rewards, groups, known, strict=True) if g == group and k]
        if not is_known or len(others) < 2:
            result.append(0.0)
        else:
            result.append((reward - statistics.mean(others)) / (statistics.stdev(others) + eps))
    return result


def test_the_sum_is_weighted() -> None:
    """By hand: 1 * 1 + 0.5 * 4 = 3, 1 * 0 + 0.5 * -2 = -1."""
    result = combine_rewards({"a": tensor([1.0, 0.0]), "b": tensor([4.0, -2.0])}, {"a": 1.0, "b": 0.5}, [0, 0])
    assert result.tolist() == [3.0, -1.0]
    assert result.dtype == torch.float32


def test_normalised_components_weigh_the_same_whatever_their_scale() -> None:
    """By hand: the group's a is 0 and 1 (mean 0.5, sample deviation 0.7071), so 0.7071 on both sides; b is 0 and 100,
    so the same with the sign turned. Weights 1 and 2: -0.7071 + 1.4142 and 0.7071 - 1.4142.
    """
    components = {"a": tensor([0.0, 1.0]), "b": tensor([100.0, 0.0])}
    result = combine_rewards(components, {"a": 1.0, "b": 2.0}, [7, 7], mode="normalize_then_sum")
    assert result.tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)


def test_equal_sums_stay_apart_after_normalising() -> None:
    """The example of GDPO: of (1, 0) and (0, 1) in a group with (0, 0) and (1, 0), the sums are equal, but the rarer
    reward is worth more. By hand: a is 1 0 0 1 (mean 1/2, deviation sqrt(1/3)), b is 0 1 0 0 (mean 1/4, deviation 1/2).
    """
    components = {"a": tensor([1.0, 0.0, 0.0, 1.0]), "b": tensor([0.0, 1.0, 0.0, 0.0])}
    weights = {"a": 1.0, "b": 1.0}
    summed = combine_rewards(components, weights, [0] * 4)
    assert summed[0] == summed[1]
    normalised = combine_rewards(components, weights, [0] * 4, mode="normalize_then_sum")
    half, quarter = 0.5 / math.sqrt(1 / 3), 0.25 / 0.5
    expected = [half - quarter, -half + 3 * quarter, -half - quarter, half - quarter]
    assert normalised.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_what_one_component_can_not_score_is_unscorable(mode: str) -> None:
    components = {"a": tensor([1.0, 2.0, NAN, 4.0]), "b": tensor([1.0, NAN, 3.0, 0.0])}
    result = combine_rewards(components, {"a": 1.0, "b": 1.0}, [0] * 4, mode=mode)
    assert [x is None for x in numbers(result)] == [False, True, True, False]


def test_an_unscorable_sample_is_left_out_of_the_statistics_of_all_components() -> None:
    """Without the second sample the group's a is 1 and 3, so -0.7071 and 0.7071; its 100 must not count."""
    components = {"a": tensor([1.0, 100.0, 3.0]), "b": tensor([0.0, NAN, 0.0])}
    result = combine_rewards(components, {"a": 1.0, "b": 1.0}, [0] * 3, mode="normalize_then_sum")
    assert numbers(result) == [pytest.approx(-0.7071, abs=1e-4), None, pytest.approx(0.7071, abs=1e-4)]


@pytest.mark.parametrize("mode", MODES)
def test_a_component_of_weight_zero_has_no_part(mode: str) -> None:
    components = {"a": tensor([1.0, 2.0]), "watched": tensor([NAN, 1e30])}
    alone = combine_rewards({"a": components["a"]}, {"a": 1.0}, [0, 0], mode=mode)
    result = combine_rewards(components, {"a": 1.0, "watched": 0.0}, [0, 0], mode=mode)
    assert torch.equal(result, alone)
    assert result.isfinite().all()


def test_all_weights_zero_give_zero() -> None:
    assert combine_rewards({"a": tensor([NAN, 1.0])}, {"a": 0.0}, [0, 0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_normalising_agrees_with_a_loop_over_groups(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 24
    groups = torch.randint(0, 6, (count,), generator=generator).tolist()
    components = {name: torch.randn(count, generator=generator, dtype=torch.float64) for name in "abc"}
    for name in "ab":
        components[name][torch.rand(count, generator=generator) < 0.15] = NAN
    weights = {"a": 1.0, "b": -0.5, "c": 3.0}
    known = [not any(math.isnan(components[name][i]) for name in "abc") for i in range(count)]
    expected = [0.0] * count
    for name in "abc":
        part = normalised_by_loop(components[name].tolist(), groups, known, eps=1e-4)
        expected = [total + weights[name] * x for total, x in zip(expected, part, strict=True)]
    result = combine_rewards(components, weights, groups, mode="normalize_then_sum", eps=1e-4)
    assert result.dtype == torch.float64
    for got, wanted, is_known in zip(numbers(result), expected, known, strict=True):
        assert got == (pytest.approx(wanted, abs=1e-9) if is_known else None)


def test_whitened_over_the_batch_it_is_gdpo() -> None:
    """By torch's own mean and std, as in TRL's ``normalize_then_sum``."""
    components = {"a": tensor([0.0, 1.0, 1.0, 0.0, 0.5, 0.0]), "b": tensor([3.0, 1.0, 2.0, 0.0, 5.0, 5.5])}
    groups = [0, 0, 0, 1, 1, 1]
    total = torch.zeros(6)
    for name, weight in (("a", 1.0), ("b", 0.3)):
        grouped = components[name].view(2, 3)
        total += weight * ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-6)).view(-1)
    expected = (total - total.mean()) / (total.std() + 1e-6)
    mixed = combine_rewards(components, {"a": 1.0, "b": 0.3}, groups, mode="normalize_then_sum")
    torch.testing.assert_close(reinforce_plus_plus_baseline(mixed, groups), expected, atol=1e-5, rtol=1e-5)


def test_equal_scores_and_groups_of_one_give_exactly_zero() -> None:
    components = {"a": tensor([0.1, 0.1, 0.1, 5.0])}
    result = combine_rewards(components, {"a": 1.0}, ["x", "x", "x", "y"], mode="normalize_then_sum")
    assert result.tolist() == [0.0] * 4


def test_no_gradient_flows() -> None:
    reward = torch.ones(2, requires_grad=True)
    assert not combine_rewards({"a": reward}, {"a": 1.0}, [0, 0]).requires_grad


@pytest.mark.parametrize(
    ("components", "weights", "mode", "words"),
    [
        ({}, {}, "sum_then_normalize", "no components"),
        ({"a": torch.ones(2)}, {"b": 1.0}, "sum_then_normalize", "components are a, but weights are of b"),
        ({"a": torch.ones(2)}, {"a": NAN}, "sum_then_normalize", "weight of a must be finite, got nan"),
        ({"a": torch.ones(2)}, {"a": 1.0}, "mean", "unknown mode 'mean'; legal are 'sum_then_normalize'"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, {"a": 1.0, "b": 1.0}, "sum_then_normalize", r"b has shape \[3\]"),
        ({"a": torch.ones(2, 2)}, {"a": 1.0}, "sum_then_normalize", r"all must be \[B\]"),
        ({"a": torch.ones(3)}, {"a": 1.0}, "normalize_then_sum", r"group_ids_B has shape \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(components: dict, weights: dict, mode: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        combine_rewards(components, weights, [0, 0], mode=mode)
