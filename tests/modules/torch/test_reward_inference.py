"""Scores, and advantages and returns against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import Row, build, call, lay_out, logged, random_rows, response_values

from chatlearn import ConfigError, DataError
from chatlearn.modules.torch import RewardInference


def by_column(prompts: list[str], completions: list[str], score: list[float | None]) -> list[float | None]:
    """A reward function for tests: the data hold the scores."""
    return score


def make_batch(rows: list[Row], scores: list[float | None], padding: str = "both", **columns: Any) -> dict[str, Any]:
    count = len(rows)
    return {
        "prompt": [f"question {i}" for i in range(count)],
        "response": [f"answer {i}" for i in range(count)],
        "finished": torch.tensor([response[-1] == 1 for _, response in rows]),
        "score": scores,
        **lay_out(rows, padding, **columns),
    }


def random_columns(rows: list[Row], *names: str) -> dict[str, list[list[float]]]:
    generator = torch.Generator().manual_seed(7)
    return {name: [torch.randn(len(r), generator=generator).tolist() for _, r in rows] for name in names}


def test_the_function_may_be_given_or_named(llama: str) -> None:
    batch = make_batch(random_rows(2), [0.5, 2.0])
    for module in (
        build(RewardInference, by_column),
        build(RewardInference, "test_reward_inference:by_column"),
        build(RewardInference, reward="test_reward_inference:by_column"),
    ):
        output = call(module, "forward_step", batch)
        assert output["rewards"].tolist() == [0.5, 2.0]
        assert output["rewards"].dtype == torch.float32
        assert "advantages" not in output, "there are no values to estimate them with"


def test_the_function_gets_texts_and_the_columns_it_names() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], *, score: list[float], other: Any = "default") -> Any:
        seen.update(prompts=prompts, completions=completions, score=score, other=other)
        return [float(len(completion)) for completion in completions]

    call(build(RewardInference, reward), "forward_step", make_batch(random_rows(2), [0.5, 2.0]))
    assert seen == {
        "prompts": ["question 0", "question 1"],
        "completions": ["answer 0", "answer 1"],
        "score": [0.5, 2.0],
        "other": "default",
    }


def test_without_a_function_the_error_says_where_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no reward function.*models\.module\.args\.reward"):
        build(RewardInference)


@pytest.mark.parametrize(
    ("path", "words"),
    [("no_colon", "package.module:name"), ("missing_module:f", "missing_module"), ("math:no_such", "no_such")],
)
def test_a_wrong_import_path_is_explained(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(RewardInference, reward=path)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0], r"expected 2 values.*got 1"),
        ([1.0, 2.0, 3.0], r"expected 2 values.*got 3"),
        ([1.0, math.nan], r"sample 1 of the batch \(id 1\) got nan.*finite number, or None"),
        ([math.inf, 1.0], r"sample 0 of the batch \(id 0\) got inf"),
        (["good", 1.0], r"sample 0 of the batch \(id 0\) got 'good'"),
        (1.0, "expected a list"),
    ],
)
@pytest.mark.parametrize("step", ["forward_step", "eval_step"])
def test_a_malformed_result_is_an_error(returned: Any, words: str, step: str) -> None:
    module = build(RewardInference, lambda prompts, completions: returned)
    with pytest.raises(DataError, match=words):
        call(module, step, make_batch(random_rows(2), [0.0, 0.0]))


def test_unscorable_samples_are_not_learned_from() -> None:
    rows = random_rows(3)
    batch = make_batch(rows, [1.0, None, 0.25], values=random_columns(rows, "values")["values"])
    before = batch["response_mask"].clone()
    module = build(RewardInference, by_column)
    output = call(module, "forward_step", batch)
    assert output["rewards"].tolist() == [1.0, 0.0, 0.25]
    assert torch.equal(batch["response_mask"], before), "the input is somebody else's, too"
    assert torch.equal(output["response_mask"][[0, 2]], before[[0, 2]])
    assert (output["response_mask"][1] == 0).all()
    assert (output["advantages"][1] == 0).all()
    assert (output["returns"][1] == 0).all()
    metrics = logged(module)
    assert metrics["unscorable"] == [1.0]
    assert metrics["reward"] == [pytest.approx(0.625)]
    assert metrics["accuracy"] == [0.5]


def test_a_batch_of_unscorable_samples_is_no_measurement() -> None:
    rows = random_rows(2)
    module = build(RewardInference, by_column)
    output = call(module, "forward_step", make_batch(rows, [None, None], values=random_columns(rows, "v")["v"]))
    assert not output["rewards"].any()
    assert not output["advantages"].any()
    metrics = logged(module)
    assert metrics["unscorable"] == [2.0]
    assert "reward" not in metrics
    assert "accuracy" not in metrics


def test_unfinished_responses_may_get_a_reward_of_their_own() -> None:
    rows = [([3], [4, 1]), ([3], [4, 5]), ([3], [6, 5])]
    module = build(RewardInference, by_column, unfinished_reward=-1.0)
    output = call(module, "forward_step", make_batch(rows, [1.0, 1.0, None]))
    assert output["rewards"].tolist() == [1.0, -1.0, 0.0]
    assert logged(module)["finished"] == [pytest.approx(1 / 3)]
    assert not output["response_mask"][2].any(), "what can't be scored stays so"
    as_others = build(RewardInference, by_column)
    assert call(as_others, "forward_step", make_batch(rows, [1.0, 0.5, 0.25]))["rewards"].tolist() == [1.0, 0.5, 0.25]


def test_success_is_a_score_from_success_score_on() -> None:
    module = build(RewardInference, by_column, success_score=0.9)
    call(module, "eval_step", make_batch(random_rows(4), [0.9, 0.89, 1.0, 0.0]))
    assert logged(module)["accuracy"] == [0.5]


def test_an_evaluation_scores_and_no_more() -> None:
    rows = random_rows(2)
    batch = make_batch(rows, [1.0, None], values=random_columns(rows, "values")["values"])
    output = call(build(RewardInference, by_column), "eval_step", batch)
    assert output["rewards"].tolist() == [1.0, 0.0]
    assert output.keys() == batch.keys() | {"rewards", "scored"}
    assert output["scored"].tolist() == [True, False]


def loop_over_tokens(
    score: float,
    values: list[float],
    differences: list[float],
    *,
    kl_coef: float,
    kl_estimator: str,
    gamma: float,
    lam: float,
) -> tuple[list[float], list[float]]:
    """Advantages and returns of one response, token by token from the last to the first."""
    penalty = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }[kl_estimator]
    rewards = [-kl_coef * penalty(d) for d in differences]
    rewards[-1] += score
    advantages, next_value, next_advantage = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        next_advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        next_value = value
        advantages.insert(0, next_advantage)
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize("padding", ["both", "left", "right", "wide"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kl_coef": 0.0, "kl_estimator": "k1", "gamma": 1.0, "lam": 1.0},
        {"kl_coef": 0.3, "kl_estimator": "k1", "gamma": 0.9, "lam": 0.8},
        {"kl_coef": 0.3, "kl_estimator": "k2", "gamma": 1.0, "lam": 0.95},
        {"kl_coef": 0.3, "kl_estimator": "k3", "gamma": 0.5, "lam": 0.0},
    ],
)
def test_advantages_and_returns_against_a_loop(padding: str, settings: dict[str, Any]) -> None:
    rows = random_rows(5, seed=3)
    columns = random_columns(rows, "values", "logprobs", "ref_logprobs")
    scores = [1.0, 0.0, -2.0, 0.5, 0.25]
    module = build(RewardInference, by_column, **settings)
    output = call(module, "forward_step", make_batch(rows, scores, padding, **columns))
    advantages, returns = response_values(output, "advantages"), response_values(output, "returns")
    differences = [
        [p - q for p, q in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(columns["logprobs"], columns["ref_logprobs"], strict=True)
    ]
    for i, score in enumerate(scores):
        expected = loop_over_tokens(score, columns["values"][i], differences[i], **settings)
        torch.testing.assert_close(advantages[i], torch.tensor(expected[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(returns[i], torch.tensor(expected[1]), atol=1e-5, rtol=1e-5)
    flat = [d for row in differences for d in row]
    assert logged(module)["kl"] == [pytest.approx(sum(flat) / len(flat), rel=1e-4)]


def test_a_sample_without_score_in_a_batch_without_mask_is_marked_alone() -> None:
    """As in a flow that only records what was answered."""
    batch = {"prompt": ["p"] * 2, "response": ["r"] * 2, "finished": torch.ones(2) > 0, "score": [None, 0.5]}
    output = call(build(RewardInference, by_column), "forward_step", batch)
    assert output["scored"].tolist() == [False, True]
    assert output["rewards"].tolist() == [0.0, 0.5]
    assert "response_mask" not in output


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_advantages_do_not_depend_on_the_dtype_of_the_mask(dtype: torch.dtype) -> None:
    rows = random_rows(3)
    columns = random_columns(rows, "values", "logprobs", "ref_logprobs")
    batch = make_batch(rows, [1.0, None, 0.25], **columns)
    module = build(RewardInference, by_column, kl_coef=0.1, gamma=0.9, lam=0.8)
    expected = call(module, "forward_step", batch)
    output = call(module, "forward_step", {**batch, "response_mask": batch["response_mask"].to(dtype)})
    assert output["response_mask"].dtype == dtype
    for name in ("advantages", "returns"):
        assert output[name].dtype == torch.float32
        assert torch.equal(output[name], expected[name])


@pytest.mark.parametrize("key", ["unfinished_reward", "success_score"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_that_are_no_numbers_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        RewardInference.Args(reward="math", **{key: value})


@pytest.mark.parametrize("value", [1e300, 10**400])
def test_a_score_that_float32_can_not_hold_is_an_error_of_its_sample(value: float) -> None:
    module = build(RewardInference, lambda prompts, completions: [0.0, value])
    with pytest.raises(DataError, match=r"sample 1 of the batch \(id 1\) got .*float32"):
        call(module, "forward_step", make_batch(random_rows(2), [0.0, 0.0]))
