"""Rewards to advantages inside of a module: groups, what could not be scored, the KL in the reward, silent groups.

Expected numbers are worked out by hand; the formulas themselves are tested with the algorithms.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from chatlearn.config.runtime import RuntimeConfig
from chatlearn.errors import ConfigError, DataError
from chatlearn.modules.advantage_estimator import AdvantageEstimator
from chatlearn.types import SampleIds

ROOT_HALF = math.sqrt(0.5)


def make(groups: list[int], group_size: int = 2, **args: Any) -> AdvantageEstimator:
    module = AdvantageEstimator("advantages")
    module._context.model_args = AdvantageEstimator.Args(**args)
    module._context.runtime_args = RuntimeConfig(num_inference_per_prompt=group_size)
    module._context.ids = SampleIds(tuple(range(len(groups))), tuple(groups))
    module.setup()
    return module


def logged(module: AdvantageEstimator) -> dict[str, float]:
    return {name: float(value) for name, value, _ in module._context.metrics}


MASK = torch.tensor([[0.0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # group 0 has rewards 1 and 3: mean 2, sample deviation sqrt(2); group 1 has 0 and 0
        ("grpo", [-ROOT_HALF, ROOT_HALF, 0, 0]),
        ("dr_grpo", [-1, 1, 0, 0]),
        ("rloo", [-2, 2, 0, 0]),
        ("reinforce_plus_plus_baseline", [-1, 1, 0, 0]),
    ],
)
def test_each_sample_is_compared_with_its_group_on_every_token_of_its_response(estimator, expected) -> None:
    module = make([5, 5, 9, 9], estimator=estimator)
    result = module.forward_step({"rewards": torch.tensor([1.0, 3, 0, 0]), "response_mask": MASK})
    torch.testing.assert_close(result["advantages"], torch.tensor(expected)[:, None] * MASK, atol=2e-6, rtol=0)
    assert logged(module)["signal"] == 0.5
    assert logged(module)["reward_std"] == pytest.approx(math.sqrt(2) / 2)


def test_groups_go_by_id_and_not_by_position() -> None:
    module = make([5, 9, 5, 9], estimator="dr_grpo")
    result = module.forward_step({"rewards": torch.tensor([1.0, 10, 3, 30])})
    assert result["advantages"].tolist() == [-1, -10, 1, 10]


@pytest.mark.parametrize("mark", ["nan", "scored"])
def test_a_sample_that_could_not_be_scored_is_left_out_of_its_group(mark) -> None:
    module = make([0, 0, 0], estimator="dr_grpo")
    rewards = torch.tensor([1.0, 3.0, math.nan if mark == "nan" else 0.0])
    data: dict[str, Any] = {"rewards": rewards}
    if mark == "scored":
        data["scored"] = torch.tensor([True, True, False])
    assert module.forward_step(data)["advantages"].tolist() == [-1, 1, 0]


def test_reinforce_plus_plus_gives_the_return_of_each_token_unwhitened() -> None:
    module = make([0, 1, 2, 3], group_size=1, estimator="reinforce_plus_plus", gamma=0.5)
    result = module.forward_step({"rewards": torch.tensor([1.0, 3, 0, -2]), "response_mask": MASK})
    assert result["advantages"].tolist() == [[0, 0.5, 1], [0, 3, 0], [0, 0, 0], [0, -1, -2]]


def test_remax_takes_the_reward_of_the_greedy_response_off() -> None:
    module = make([0, 1], group_size=1, estimator="remax")
    sampled, greedy = {"rewards": torch.tensor([1.0, 3])}, {"rewards": torch.tensor([0.5, 4])}
    assert module.remax({"response_mask": MASK[:2]}, sampled, greedy)["advantages"].tolist() == [
        [0, 0.5, 0.5],
        [0, -1, 0],
    ]


@pytest.mark.parametrize(("estimator", "kl_estimator"), [("dr_grpo", "k1"), ("reinforce_plus_plus", "k2")])
def test_the_kl_is_taken_off_the_reward(estimator, kl_estimator) -> None:
    logprobs = torch.tensor([[9.0, -1, -2], [9, -1, 9], [9, -3, -1], [9, -1, -1]])
    reference = torch.tensor([[7.0, -2, -2], [7, -3, 7], [7, -3, -1], [7, -1, -2]])  # k1: 1 0 | 2 | 0 0 | 0 1
    module = make([0, 0, 1, 1], estimator=estimator, kl_coef=0.5, kl_estimator=kl_estimator)
    data = {"logprobs": logprobs, "ref_logprobs": reference, "response_mask": MASK, "rewards": torch.zeros(4)}
    result = module.forward_step({**data, "rewards": torch.tensor([1.0, 1, 0, 1])})["advantages"]
    assert logged(module)["kl"] == pytest.approx(4 / 7)
    if estimator == "dr_grpo":  # scores less half of the sums: 0.5 0 0 0.5
        assert result.tolist() == [[0, 0.25, 0.25], [0, -0.25, 0], [0, -0.25, -0.25], [0, 0.25, 0.25]]
    else:  # k2: 0.5 0 | 2 | 0 0 | 0 0.5; rewards per token: -.25 1 | 0 | 0 0 | 0 .75
        assert result.tolist() == [[0, 0.75, 1], [0, 0, 0], [0, 0, 0], [0, 0.75, 0.75]]


def test_the_weight_of_the_kl_follows_its_target_once_per_episode() -> None:
    module = make([0, 0], estimator="dr_grpo", kl_coef=0.1, kl_target=0.5, kl_horizon=2000.0)
    mask = torch.ones(2, 2)
    data = {"rewards": torch.tensor([0.0, 1]), "logprobs": mask * 2, "ref_logprobs": mask, "response_mask": mask}
    module.forward_step(data)
    module.forward_step(data)
    assert logged(module)["kl_coef"] == pytest.approx(0.1)
    module.after_episode()
    # KL 1 against 0.5: the error is clipped to 0.2; four samples of two thousand
    assert module.kl_controller.coef == pytest.approx(0.1 * (1 + 0.2 * 4 / 2000))
    assert module.state_dict()["kl_controller"] == {"coef": module.kl_controller.coef}


def test_silent_groups_are_dropped_as_wholes() -> None:
    module = make([0, 0, 1, 1, 2, 2])
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 1])
    kept = module.keep_signal({"rewards": rewards, "advantages": torch.arange(6.0)})
    assert kept["source_rows"].tolist() == [0, 1, 4, 5]
    assert kept["advantages"].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("data", [{"score": [1]}, {"rewards": torch.ones(1), "advantages": torch.ones(1)}])
def test_what_has_advantages_or_no_rewards_passes(data) -> None:
    assert make([0]).forward_step(data) is data


def test_several_rewards_become_a_weighted_sum_with_its_parts() -> None:
    module = make([0, 0])
    first = {"rewards": torch.tensor([1.0, 2]), "response_mask": torch.ones(2, 3), "note": ["a", "b"]}
    second = {"rewards": torch.tensor([math.nan, 4.0])}
    made = module.combine(first, second, names=["rule", "judge"], weights=[1.0, 0.25], mode="sum_then_normalize")
    assert made["rewards"].tolist() == [0, 3]
    assert made["scored"].tolist() == [False, True]
    assert made["response_mask"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert made["note"] == ["a", "b"]
    assert made["reward_components"]["rule"].tolist() == [1, 2]
    assert made["reward_components"]["judge"][1] == 4
    assert logged(module)["reward/judge"] == 4


def test_several_rewards_are_brought_to_one_scale_before_they_are_added() -> None:
    module = make([0, 0, 0, 0])
    rule, judge = torch.tensor([0.0, 0, 1, 1]), torch.tensor([300.0, 100, 300, 100])
    made = module.combine(
        {"rewards": rule}, {"rewards": judge}, names=["a", "b"], weights=[1, 1], mode="normalize_then_sum"
    )
    scale = math.sqrt(3) / 2  # half of the distance over the sample deviation, for both
    expected = torch.tensor([0.0, -2, 2, 0]) * scale
    torch.testing.assert_close(made["rewards"], expected, atol=1e-5, rtol=0)


def test_a_reward_module_without_rewards_is_named() -> None:
    with pytest.raises(DataError, match="reward module judge returns no `rewards`; it has score"):
        make([0]).combine({"score": [1]}, names=["judge"], weights=[1], mode="sum_then_normalize")


def test_groups_of_one_are_refused_at_the_first_batch() -> None:
    with pytest.raises(ConfigError, match=r"advantages\.args\.estimator: rloo .*runtime.num_inference_per_prompt to 2"):
        make([0, 1], group_size=1, estimator="rloo").forward_step({"rewards": torch.ones(2)})


def test_remax_without_a_baseline_says_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match="greedy_baseline=True"):
        make([0, 1], estimator="remax").forward_step({"rewards": torch.ones(2)})


def test_a_kl_weight_without_a_reference_is_named() -> None:
    with pytest.raises(DataError, match=r"kl_coef is 0\.1, but the batch has no logprobs, ref_logprobs"):
        make([0, 0], kl_coef=0.1).forward_step({"rewards": torch.ones(2), "response_mask": torch.ones(2, 1)})


def test_a_run_whose_rewards_never_differ_ends_with_a_reason() -> None:
    module = make([0, 0, 1, 1], max_batches_without_signal=3)
    silent = {"rewards": torch.tensor([0.5, 0.5, 2, 2])}
    module.forward_step(silent)
    module.forward_step(silent)
    again = make([0, 0, 1, 1], max_batches_without_signal=3)
    again.load_state_dict(module.state_dict())  # a run that goes on has not forgotten
    with pytest.raises(DataError, match=r"in all 3 batches .* lie between 0\.5 and 2"):
        again.forward_step(silent)


def test_a_run_that_had_a_signal_may_fall_silent() -> None:
    module = make([0, 0], max_batches_without_signal=1)
    module.forward_step({"rewards": torch.tensor([0.0, 1])})
    for _ in range(3):
        module.forward_step({"rewards": torch.ones(2)})
    assert logged(module)["signal"] == 0


def test_a_module_without_weight_takes_nothing_out_of_training() -> None:
    rule = {"rewards": torch.tensor([1.0, 2]), "response_mask": torch.ones(2, 2)}
    judge = {"rewards": torch.tensor([0.0, 5]), "scored": torch.tensor([False, True])}
    judge["response_mask"] = torch.tensor([[0.0, 0], [1, 1]])
    for outputs, names, weights in ([(rule, judge), "ab", [1, 0]], [(judge, rule), "ba", [0, 1]]):
        made = make([0, 0]).combine(*outputs, names=list(names), weights=weights, mode="sum_then_normalize")
        assert made["rewards"].tolist() == [1, 2]
        assert made["response_mask"].tolist() == [[1, 1], [1, 1]]


def test_normalising_groups_of_one_is_refused() -> None:
    output = {"rewards": torch.tensor([1.0, 2])}
    with pytest.raises(ConfigError, match="normalize_then_sum compares the responses"):
        make([0, 1], group_size=1).combine(output, output, names=["a", "b"], weights=[1, 1], mode="normalize_then_sum")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("estimator", ["grpo", "reinforce_plus_plus"])
def test_a_mask_may_be_of_any_dtype(dtype, estimator) -> None:
    data = {"rewards": torch.tensor([1.0, 3, 0, 0])}
    expected = make([0, 0, 1, 1], estimator=estimator).forward_step({**data, "response_mask": MASK})
    got = make([0, 0, 1, 1], estimator=estimator).forward_step({**data, "response_mask": MASK.to(dtype)})
    assert torch.equal(got["advantages"], expected["advantages"])


@pytest.mark.parametrize("rewards", [{"rewards": torch.ones(6)}, {}])
def test_where_rewards_are_not_compared_a_group_stays_whole_if_any_of_it_has_an_advantage(rewards) -> None:
    module = make([0, 0, 1, 1, 2, 2], estimator="remax")
    advantages = torch.tensor([[0.0, 1], [0, 0], [0, 0], [0, 0], [0, 0], [2, 0]])
    kept = module.keep_signal({**rewards, "advantages": advantages})
    assert kept["source_rows"].tolist() == [0, 1, 4, 5]
    assert torch.equal(kept["advantages"], advantages[[0, 1, 4, 5]])


def test_a_failure_is_a_signal_among_successes_for_reinforce_plus_plus_too() -> None:
    module = make([0, 0, 1, 1], estimator="reinforce_plus_plus")
    rewards = {"rewards": torch.tensor([0.0, 1, 1, 1])}
    estimated = module.forward_step({**rewards, "response_mask": MASK})
    assert module.keep_signal({**rewards, **estimated})["source_rows"].tolist() == [0, 1]


def test_groups_of_one_are_never_silent() -> None:
    with pytest.raises(ConfigError, match="leaving out groups without signal compares"):
        make([0, 1], group_size=1, estimator="reinforce_plus_plus").keep_signal(
            {"rewards": torch.ones(2), "advantages": torch.ones(2)}
        )


def test_nobody_trains_on_what_could_not_be_scored() -> None:
    module = make([0, 0, 1, 1], estimator="reinforce_plus_plus")
    made = module.forward_step({"rewards": [1.0, None, 0.5, 0.0], "response_mask": MASK})
    assert made["response_mask"].tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert made["advantages"][1].tolist() == [0, 0, 0]


def test_an_infinite_reward_is_named_by_its_sample() -> None:
    with pytest.raises(DataError, match=r"sample 1 of the batch \(id 1\) got inf"):
        make([0, 0]).forward_step({"rewards": torch.tensor([1.0, math.inf])})


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="`rewards` must be numbers"):
        make([0, 0]).forward_step({"rewards": [1.0, "good"]})


def test_a_horizon_that_lets_the_weight_fall_to_nothing_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"advantages\.args\.kl_horizon is 20, .* Set it above"):
        make([0, 0], kl_coef=0.1, kl_target=0.5, kl_horizon=20.0)
