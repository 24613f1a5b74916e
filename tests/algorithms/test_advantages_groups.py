"""Advantages from groups of responses, against figures worked out by hand and loops over the groups in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, stdev

import pytest
import torch
from algorithm_cases import INF, NAN
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatlearn.algorithms.advantages import grpo, reinforce_plus_plus_baseline, remax, rloo

HALF = math.sqrt(0.5)
GROUP_ESTIMATORS = [grpo, rloo, reinforce_plus_plus_baseline]


def dr_grpo(rewards_B: Tensor, group_ids_B: object) -> Tensor:
    return grpo(rewards_B, group_ids_B, normalize_std=False)


def of_members(formula: Callable[[list[float]], list[float]], rewards: list[float], ids: list) -> list[float]:
    """The formula on the scorable members of each group of two or more; 0 for all others."""
    result = [0.0] * len(rewards)
    for group in set(ids):
        members = [i for i, other in enumerate(ids) if other == group and not math.isnan(rewards[i])]
        if len(members) > 1:
            for i, advantage in zip(members, formula([rewards[i] for i in members]), strict=True):
                result[i] = advantage
    return result


def grpo_of_group(rewards: list[float]) -> list[float]:
    return [(r - mean(rewards)) / (stdev(rewards) + 1e-6) for r in rewards]


def dr_grpo_of_group(rewards: list[float]) -> list[float]:
    return [r - mean(rewards) for r in rewards]


def rloo_of_group(rewards: list[float]) -> list[float]:
    return [r - mean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]


FORMULAS = [(grpo, grpo_of_group), (dr_grpo, dr_grpo_of_group), (rloo, rloo_of_group)]


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Rewards in steps of 1/4, some NaN, and ids in any order."""
    size = draw(st.integers(1, 12))
    rewards = st.one_of(st.integers(-20, 20).map(lambda n: n / 4), st.just(NAN))
    ids = st.lists(st.integers(-2, 2), min_size=size, max_size=size)
    return draw(st.lists(rewards, min_size=size, max_size=size)), draw(ids)


@pytest.mark.parametrize(
    ("rewards", "ids", "expected"),
    [
        # Two: mean 1/2, sample deviation sqrt(1/2).
        ([1, 0], [0, 0], [HALF, -HALF]),
        # One of four: mean 1/4, squares 9/16 + 3/16 over 3, deviation 1/2.
        ([1, 0, 0, 0], [0, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        # 1, 2, 3: deviation 1.
        ([1, 2, 3], [5, 5, 5], [-1, 0, 1]),
        # The scale of the rewards plays no part, nor does what is added to all.
        ([110, 120, 130], [5, 5, 5], [-1, 0, 1]),
        # Two groups, interleaved: 0 and 2, 1 and 2 and 3.
        ([0, 1, 2, 2, 3], [7, 8, 7, 8, 8], [-HALF, -1, HALF, 0, 1]),
        # Without the NaN: 1, 2, 3.
        ([1, NAN, 2, 3], [0, 0, 0, 0], [-1, 0, 0, 1]),
        # One is left, one is alone, one group has no signal.
        ([4, NAN], [0, 0], [0, 0]),
        ([4, 7], [0, 1], [0, 0]),
        ([4, 4, 4], [0, 0, 0], [0, 0, 0]),
        ([NAN, NAN], [0, 0], [0, 0]),
    ],
)
def test_grpo_by_hand(rewards: list[float], ids: list[int], expected: list[float]) -> None:
    advantages = grpo(torch.tensor(rewards, dtype=torch.float64), torch.tensor(ids))
    assert advantages.tolist() == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(
    ("rewards", "ids", "expected"),
    [
        ([1, 0], [0, 0], [0.5, -0.5]),
        ([1, 0, 0, 0], [0, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        ([1, 2, 6], [0, 0, 0], [-2, -1, 3]),
        ([1, 8, 3, 4], [0, 1, 0, 1], [-1, 2, 1, -2]),
        ([1, NAN, 3], [0, 0, 0], [-1, 0, 1]),
        ([5, 1, 3], [1, 0, 0], [0, -1, 1]),
    ],
)
def test_dr_grpo_by_hand(rewards: list[float], ids: list[int], expected: list[float]) -> None:
    assert dr_grpo(torch.tensor(rewards), ids).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "ids", "expected"),
    [
        ([1, 0], [0, 0], [1, -1]),
        ([1, 0, 0, 0], [0, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
        ([1, 2, 6], [0, 0, 0], [-3, -1.5, 4.5]),
        ([1, 8, 3, 4], [0, 1, 0, 1], [-2, 4, 2, -4]),
        ([1, NAN, 3], [0, 0, 0], [-2, 0, 2]),
        ([5, 1, 3], [1, 0, 0], [0, -2, 2]),
        ([7], ["only"], [0]),
    ],
)
def test_rloo_by_hand(rewards: list[float], ids: list, expected: list[float]) -> None:
    assert rloo(torch.tensor(rewards), ids).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rewards", "ids", "expected"),
    [
        # Differences 1, -1, 3, -3: squares 20 over 3.
        ([3, 1, 9, 3], [0, 0, 1, 1], [x / math.sqrt(20 / 3) for x in (1, -1, 3, -3)]),
        # The same interleaved, with one that is alone and one that has no reward: neither counts.
        (
            [3, 9, 100, 1, 3, NAN],
            [0, 1, 2, 0, 1, 1],
            [x / math.sqrt(20 / 3) for x in (1, 3, 0, -1, -3, 0)],
        ),
        # A group without signal does count, with zeros: squares 2 over 3.
        ([1, 3, 5, 5], [0, 0, 1, 1], [-1 / math.sqrt(2 / 3), 1 / math.sqrt(2 / 3), 0, 0]),
        ([5, 5, 6, 6], [0, 0, 1, 1], [0, 0, 0, 0]),
        ([5, 6], [0, 1], [0, 0]),
    ],
)
def test_baseline_form_of_reinforce_plus_plus_by_hand(
    rewards: list[float], ids: list[int], expected: list[float]
) -> None:
    advantages = reinforce_plus_plus_baseline(torch.tensor(rewards, dtype=torch.float64), ids)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("rewards", "baselines", "expected"),
    [
        ([1, 0, 0.5], [0, 1, 0.5], [1, -1, 0]),
        ([-2, 3], [-5, 7], [3, -4]),
        ([NAN, 1, NAN], [1, NAN, NAN], [0, 0, 0]),
        ([], [], []),
    ],
)
def test_remax_by_hand(rewards: list[float], baselines: list[float], expected: list[float]) -> None:
    assert remax(torch.tensor(rewards), torch.tensor(baselines)).tolist() == expected


@pytest.mark.parametrize(("estimator", "formula"), FORMULAS)
@given(case=groups())
def test_matches_a_loop_over_groups(estimator: Callable, formula: Callable, case: tuple) -> None:
    rewards, ids = case
    actual = estimator(torch.tensor(rewards, dtype=torch.float64), ids).tolist()
    assert actual == pytest.approx(of_members(formula, rewards, ids), rel=1e-9, abs=1e-9)


@given(groups())
def test_baseline_form_of_reinforce_plus_plus_matches_a_loop(case: tuple[list[float], list[int]]) -> None:
    rewards, ids = case
    differences = of_members(dr_grpo_of_group, rewards, ids)
    counts = of_members(lambda group: [len(group)] * len(group), rewards, ids)
    counting = [x for x, count in zip(differences, counts, strict=True) if count]
    scale = math.sqrt(sum(x * x for x in counting) / (len(counting) - 1) + 1e-8) if counting else 1
    actual = reinforce_plus_plus_baseline(torch.tensor(rewards, dtype=torch.float64), ids).tolist()
    assert actual == pytest.approx([x / scale for x in differences], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
@given(case=groups())
def test_advantages_of_a_group_add_up_to_zero(estimator: Callable, case: tuple) -> None:
    rewards, ids = case
    advantages = estimator(torch.tensor(rewards), ids)
    for group in set(ids):
        members = torch.tensor([other == group for other in ids])
        assert advantages[members].sum().item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("estimator", [*GROUP_ESTIMATORS, dr_grpo])
@given(case=groups(), data=st.data())
def test_the_order_of_samples_and_the_names_of_groups_mean_nothing(
    estimator: Callable, case: tuple, data: st.DataObject
) -> None:
    rewards, ids = torch.tensor(case[0], dtype=torch.float64), case[1]
    order = data.draw(st.permutations(range(len(ids))))
    names = data.draw(st.permutations(["a", ("b", 1), 3, None, 2.5]))
    actual = estimator(rewards[order], [names[ids[i] + 2] for i in order])
    torch.testing.assert_close(actual, estimator(rewards, ids)[order])


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
@given(case=groups())
def test_a_group_does_not_depend_on_the_others(estimator: Callable, case: tuple) -> None:
    rewards, ids = torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1])
    whole = estimator(rewards, ids)
    for group in ids.unique():
        torch.testing.assert_close(whole[ids == group], estimator(rewards[ids == group], ids[ids == group]))


@pytest.mark.parametrize("estimator", [*GROUP_ESTIMATORS, dr_grpo])
@given(case=groups(), data=st.data())
def test_an_unscorable_sample_is_as_good_as_none(estimator: Callable, case: tuple, data: st.DataObject) -> None:
    rewards, ids = torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1])
    place = data.draw(st.integers(0, len(ids)))
    more = torch.cat([rewards[:place], torch.tensor([NAN], dtype=torch.float64), rewards[place:]])
    more_ids = torch.cat([ids[:place], torch.tensor([data.draw(st.integers(-2, 2))]), ids[place:]])
    actual = estimator(more, more_ids)
    assert actual[place] == 0
    torch.testing.assert_close(torch.cat([actual[:place], actual[place + 1 :]]), estimator(rewards, ids))


@pytest.mark.parametrize("estimator", [*GROUP_ESTIMATORS, dr_grpo])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 100.1, -7.3e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_give_exact_zeros(estimator: Callable, reward: float, dtype: torch.dtype) -> None:
    """The mean of seven times 0.1 is not 0.1 in floats; over ``std + eps`` the rest would become a signal."""
    rewards = torch.full((14,), reward, dtype=dtype)
    assert estimator(rewards, [0, 1] * 7).tolist() == [0.0] * 14


@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS)
def test_ids_may_be_a_tensor_a_list_or_a_tuple(estimator: Callable) -> None:
    rewards = torch.tensor([1.0, 0.0, 4.0, 2.0])
    expected = estimator(rewards, [3, 3, -1, -1])
    assert expected.abs().min() > 0
    for ids in (
        torch.tensor([3, 3, -1, -1]),
        torch.tensor([3.5, 3.5, -1, -1]),
        (3, 3, -1, -1),
        ["b", "b", "a", "a"],
        list(torch.tensor([3, 3, -1, -1])),
    ):
        assert torch.equal(estimator(rewards, ids), expected)


@pytest.mark.parametrize("estimator", [*GROUP_ESTIMATORS, lambda rewards, ids: remax(rewards, torch.zeros(len(ids)))])
@pytest.mark.parametrize(
    ("dtype", "result_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_result_dtype(estimator: Callable, dtype: torch.dtype, result_dtype: torch.dtype) -> None:
    advantages = estimator(torch.tensor([1, 0, 1], dtype=dtype), [0, 0, 0])
    assert advantages.dtype == result_dtype
    assert advantages.shape == (3,)
    assert advantages.isfinite().all()


@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS)
def test_an_empty_batch_gives_an_empty_tensor(estimator: Callable) -> None:
    assert estimator(torch.zeros(0), []).shape == estimator(torch.zeros(0), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("estimator", [*GROUP_ESTIMATORS, lambda rewards, ids: remax(rewards, rewards)])
def test_inputs_are_not_changed_and_results_have_no_gradient(estimator: Callable) -> None:
    rewards = torch.tensor([1.0, 2.0, NAN], requires_grad=True)
    ids = torch.tensor([1, 1, 1])
    assert not estimator(rewards, ids).requires_grad
    assert (rewards._version, ids._version) == (0, 0)


def test_eps_bounds_the_advantages_of_nearly_equal_rewards() -> None:
    """Deviation sqrt(1/2) * 1e-3; with eps 1 the advantages are about the differences."""
    rewards = torch.tensor([0.0, 1e-3], dtype=torch.float64)
    deviation = HALF * 1e-3
    assert grpo(rewards, [0, 0], eps=1.0).tolist() == pytest.approx([-5e-4 / (deviation + 1), 5e-4 / (deviation + 1)])


@pytest.mark.parametrize("eps", [0, -1e-6, NAN, INF])
def test_illegal_eps_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps must be a finite number above 0, got {eps}"):
        grpo(torch.zeros(2), [0, 0], eps=eps)


@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS)
def test_shapes_that_do_not_fit_are_refused(estimator: Callable) -> None:
    with pytest.raises(ValueError, match=r"rewards_B has shape \[2, 3\]; expected \[B\], one reward per response"):
        estimator(torch.zeros(2, 3), [0, 0])
    for ids, shape in (([0], "1"), (torch.zeros(3), "3"), (torch.zeros(2, 1), "2, 1"), (torch.tensor(1), "")):
        with pytest.raises(ValueError, match=rf"group_ids_B has shape \[{shape}\] but rewards_B has shape \[2\]"):
            estimator(torch.zeros(2), ids)


def test_remax_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"baseline_rewards_B has shape \[3\] but rewards_B has shape \[2\]"):
        remax(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"rewards_B has shape \[2, 3\]; expected \[B\], one reward per response"):
        remax(torch.zeros(2, 3), torch.zeros(2, 3))
