"""Rewards made of components: sums, groups, samples that can't be scored, and what names a component in errors.

Learned components have a file of their own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import Row, build, call, lay_out, logged, random_rows

from chatlearn import ConfigError, DataError
from chatlearn.modules.torch import RewardInference
from chatlearn.modules.torch.reward_components import RewardComponentArgs
from chatlearn.observe.samples import sample_line
from chatlearn.rewards import REWARDS
from chatlearn.types import SampleIds

NAN = math.nan
HERE = "test_reward_components"


def by_column(prompts: list[str], completions: list[str], score: list[float | None]) -> list[float | None]:
    return score


def constant(prompts: list[str], completions: list[str], value: float = 1.0) -> list[float]:
    return [value] * len(prompts)


def divides(prompts: list[str], completions: list[str], number: list[float]) -> list[float]:
    return [1 / x for x in number]


def only_alone(prompts: list[str], completions: list[str]) -> list[float]:
    if len(prompts) > 1:
        raise RuntimeError("one at a time")
    return [0.0]


def too_few(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0]


def third_is_nan(prompts: list[str], completions: list[str]) -> list[float]:
    return [1.0, 1.0, NAN, 1.0][: len(prompts)]


def part(name: str, **more: Any) -> dict[str, Any]:
    """A component whose scores stand in the batch under its name, if nothing else is said."""
    sources = {"function", "model", "reasoning_gym", "column"}
    return {"name": name, **({} if sources & more.keys() else {"column": name}), **more}


def batch_of(count: int, rows: list[Row] | None = None, **columns: Any) -> dict[str, Any]:
    rows = rows or [([3, 4], [5, 1]) for _ in range(count)]
    return {
        "prompt": [f"question {i}" for i in range(count)],
        "response": [f"answer {i}" for i in range(count)],
        "finished": torch.tensor([response[-1] == 1 for _, response in rows]),
        **lay_out(rows, "both"),
        **columns,
    }


def run(module: RewardInference, data: dict[str, Any], groups: list[int] | None = None, step: str = "forward_step"):
    count = len(data["prompt"])
    module._context.ids = SampleIds(tuple(range(100, 100 + count)), tuple(groups or range(count)))
    return getattr(module, step)(data)


def numbers(tensor: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(x) else x for x in tensor.tolist()]


def test_components_are_summed_with_weights_and_logged_apart() -> None:
    """By hand: 1 * [1, 0, 1] + 0.5 * [2, 4, -6] = [2, 2, -2]."""
    module = build(RewardInference, rewards=[part("right"), part("style", weight=0.5)])
    output = run(module, batch_of(3, right=[1.0, 0.0, 1.0], style=torch.tensor([2.0, 4.0, -6.0])))
    assert output["rewards"].tolist() == [2.0, 2.0, -2.0]
    assert output["scored"].tolist() == [True] * 3
    assert {name: scores.tolist() for name, scores in output["reward_components"].items()} == {
        "right": [1.0, 0.0, 1.0],
        "style": [2.0, 4.0, -6.0],
    }
    assert all(scores.dtype == torch.float32 for scores in output["reward_components"].values())
    metrics = logged(module)
    assert metrics["reward"] == [pytest.approx(2 / 3)]
    assert metrics["reward/right"] == [pytest.approx(2 / 3)]
    assert metrics["reward_std/right"] == [pytest.approx(math.sqrt(1 / 3))]
    assert metrics["reward/style"] == [0.0]
    assert metrics["reward_std/style"] == [pytest.approx(math.sqrt((4 + 16 + 36) / 2))]
    assert metrics["accuracy"] == [pytest.approx(2 / 3)], "by the first component"


def test_a_component_is_clipped_before_it_is_weighted_and_stays_raw_in_the_batch() -> None:
    module = build(RewardInference, rewards=[part("a", weight=2.0, clip=[-1, 1])])
    output = run(module, batch_of(3, a=[5.0, 0.25, -5.0]))
    assert output["rewards"].tolist() == [2.0, 0.5, -2.0]
    assert output["reward_components"]["a"].tolist() == [5.0, 0.25, -5.0]


def test_what_one_component_can_not_score_is_unscorable() -> None:
    module = build(RewardInference, rewards=[part("a"), part("b")])
    data = batch_of(3, a=[1.0, None, 2.0], b=[1.0, 1.0, NAN])
    output = run(module, data)
    assert output["rewards"].tolist() == [2.0, 0.0, 0.0]
    assert output["scored"].tolist() == [True, False, False]
    assert [bool(row.any()) for row in output["response_mask"]] == [True, False, False]
    assert numbers(output["reward_components"]["a"]) == [1.0, None, 2.0]
    metrics = logged(module)
    assert metrics["unscorable"] == [2.0]
    assert metrics["reward"] == [2.0]
    assert metrics["reward/a"] == [1.5]
    assert metrics["reward/b"] == [1.0]


def test_a_component_of_weight_zero_is_watched_only() -> None:
    module = build(RewardInference, rewards=[part("a"), part("watched", weight=0)])
    output = run(module, batch_of(2, a=[1.0, 2.0], watched=[None, 50.0]))
    assert output["rewards"].tolist() == [1.0, 2.0]
    assert output["scored"].tolist() == [True, True]
    assert logged(module)["reward/watched"] == [50.0]


def test_normalised_in_their_groups_components_weigh_the_same() -> None:
    """By hand, two groups of two: a is -0.7071 and 0.7071 in the first and 0 in the second, where it is equal; b is the
    opposite in the first at another scale, and -0.7071, 0.7071 in the second.
    """
    module = build(RewardInference, rewards=[part("a"), part("b", weight=2.0)], combine="normalize_then_sum")
    data = batch_of(4, a=[0.0, 1.0, 3.0, 3.0], b=[100.0, 0.0, 1.0, 2.0])
    output = run(module, data, groups=[5, 5, 9, 9])
    half = math.sqrt(0.5)
    assert output["rewards"].tolist() == pytest.approx([half, -half, -2 * half, 2 * half], abs=1e-4)
    assert logged(module)["reward"] == [pytest.approx((200 + 1 + 5 + 7) / 4)], "the weighted sum stays readable"


def test_an_unscorable_sample_is_left_out_of_its_groups_statistics() -> None:
    """Without the second sample, whose b is missing, the group's a is 1 and 3."""
    module = build(RewardInference, rewards=[part("a"), part("b")], combine="normalize_then_sum")
    output = run(module, batch_of(3, a=[1.0, 100.0, 3.0], b=[0.0, None, 0.0]), groups=[1, 1, 1])
    assert output["rewards"].tolist() == pytest.approx([-math.sqrt(0.5), 0.0, math.sqrt(0.5)], abs=1e-4)
    assert output["scored"].tolist() == [True, False, True]


def test_an_evaluation_is_the_weighted_sum_in_either_mode() -> None:
    module = build(RewardInference, rewards=[part("a"), part("b", weight=0.5)], combine="normalize_then_sum")
    output = run(module, batch_of(2, a=[1.0, 0.0], b=[2.0, 4.0]), step="eval_step")
    assert output["rewards"].tolist() == [2.0, 2.0]
    assert output["reward_components"]["b"].tolist() == [2.0, 4.0]
    assert logged(module)["accuracy"] == [0.5]


def test_accuracy_may_be_that_of_another_component() -> None:
    parts = [part("a"), part("exact", weight=0)]
    module = build(RewardInference, rewards=parts, accuracy_of="exact", success_score=0.9)
    run(module, batch_of(4, a=[1.0] * 4, exact=[0.9, 0.89, None, 1.0]))
    assert logged(module)["accuracy"] == [pytest.approx(2 / 3)]


def test_responses_that_were_cut_off_may_get_a_score_of_their_own_from_each_component() -> None:
    rows = [([3], [4, 1]), ([3], [4, 5]), ([3], [4, 5])]
    module = build(RewardInference, rewards=[part("a", unfinished=-1.0), part("b")])
    output = run(module, batch_of(3, rows, a=[0.5, 0.5, None], b=[0.25, 0.25, 0.25]))
    assert output["rewards"].tolist() == [0.75, -0.75, 0.0]
    assert output["scored"].tolist() == [True, True, False]


def test_the_whole_reward_of_a_response_that_was_cut_off_may_be_fixed() -> None:
    rows = [([3], [4, 1]), ([3], [4, 5])]
    module = build(RewardInference, rewards=[part("a"), part("b")], unfinished_reward=-2.0)
    output = run(module, batch_of(2, rows, a=[1.0, 1.0], b=[1.0, 1.0]))
    assert output["rewards"].tolist() == [2.0, -2.0]
    assert logged(module)["accuracy"] == [0.5]


def test_functions_come_by_path_by_short_name_and_with_arguments() -> None:
    module = build(
        RewardInference,
        rewards=[
            {"name": "fixed", "function": f"{HERE}:constant", "kwargs": {"value": 3}},
            {"name": "exact", "function": "exact_match", "kwargs": {"ignore_case": True}},
            {"name": "short", "function": "overlong_penalty", "kwargs": {"max_length": 4, "buffer": 4}},
        ],
    )
    data = batch_of(2, answer=["ANSWER 0", "else"])
    output = run(module, data)
    assert output["rewards"].tolist() == [3 + 1 - 0.5, 3 + 0 - 0.5], "two of four tokens"


def test_a_single_reward_may_be_a_short_name_too() -> None:
    output = run(build(RewardInference, reward="exact_match"), batch_of(2, answer=["answer 0", "else"]))
    assert output["rewards"].tolist() == [1.0, 0.0]
    assert "reward_components" not in output


def test_a_data_set_of_reasoning_gym_comes_by_its_name() -> None:
    entry = {"question": "?", "answer": "aba", "metadata": {"letters": ["a", "a", "b"], "generated_palindrome": "aba"}}
    spec = {"name": "task", "reasoning_gym": "palindrome_generation", "config": {"min_length": 3, "max_length": 6}}
    data = {**batch_of(2, entry=[entry] * 2), "response": ["aba", "aab"]}
    raw = run(build(RewardInference, rewards=[spec]), data)["rewards"]
    assert raw[0] == 1.0
    assert 0 < raw[1] < 1
    exact = run(build(RewardInference, rewards=[{**spec, "binary": True}]), data)["rewards"]
    assert exact.tolist() == [1.0, 0.0]


def test_scores_of_an_earlier_reward_module_are_taken_over() -> None:
    """Its reward of 0 may stand for a sample that it could not score."""
    first = build(RewardInference, rewards=[part("a"), part("b")])
    output = run(first, batch_of(3, a=[1.0, 0.0, None], b=[1.0, 0.0, 1.0]))
    second = build(
        RewardInference, rewards=[part("total", column="rewards"), part("a", column="reward_components.b", weight=10)]
    )
    result = run(second, output)
    assert result["rewards"].tolist() == [12.0, 0.0, 0.0]
    assert result["scored"].tolist() == [True, True, False]
    assert set(result["reward_components"]) == {"a", "b", "total"}


def test_the_output_is_a_line_of_json_with_null_where_a_component_has_no_score() -> None:
    module = build(RewardInference, rewards=[part("a"), part("b", weight=0)])
    output = run(module, batch_of(2, a=[1.0, 2.0], b=[0.5, None]))
    first, second = (json.loads(sample_line({}, output, row)) for row in range(2))
    assert (first["rewards"], first["scored"], first["reward_components"]) == (1.0, True, {"a": 1.0, "b": 0.5})
    assert second["reward_components"] == {"a": 2.0, "b": None}


def test_advantages_come_from_the_combined_reward() -> None:
    """Values 0, gamma and lambda 1: each token's advantage is the reward."""
    rows = random_rows(3, seed=2)
    data = {**batch_of(3, rows, a=[1.0, 0.0, None], b=[2.0, 4.0, 1.0])}
    data["values"] = torch.zeros_like(data["response_mask"])
    module = build(RewardInference, rewards=[part("a"), part("b", weight=0.5)])
    output = run(module, data)
    for row, expected in enumerate([2.0, 2.0, 0.0]):
        advantages = output["advantages"][row][data["response_mask"][row].bool()]
        assert advantages.tolist() == pytest.approx([expected] * len(advantages))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("divides", r"raises ZeroDivisionError.*first for sample 2 of the batch \(id 102\).*'answer 2'.*return None"),
        ("only_alone", r"raises RuntimeError: one at a time \(for these 4 samples together"),
        ("too_few", "too_few: expected 4 values, one per completion, got 1"),
        ("third_is_nan", r"third_is_nan: sample 2 of the batch \(id 102\) got nan"),
    ],
)
@pytest.mark.parametrize("step", ["forward_step", "eval_step"])
def test_errors_name_component_and_sample(function: str, words: str, step: str) -> None:
    parts = [part("fine", function=f"{HERE}:constant"), part("mine", function=f"{HERE}:{function}")]
    module = build(RewardInference, rewards=parts)
    place = r"(?s)reward component 'mine' \(models\.module\.args\.rewards\.1\): .*"
    with pytest.raises(DataError, match=place + words) as caught:
        run(module, batch_of(4, number=[1.0, 2.0, 0.0, 0.0]), step=step)
    if "raises" in words:
        assert isinstance(caught.value.__cause__, ZeroDivisionError | RuntimeError)


def test_a_single_function_that_raises_is_named_with_the_sample_too() -> None:
    with pytest.raises(DataError, match=r"test_reward_components\.divides raises ZeroDivisionError.*\(id 101\)"):
        run(build(RewardInference, divides), batch_of(2, number=[1.0, 0.0]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, r"'a' \(models.module.args.rewards.0\): the batch has no column 'a'"),
        ({"a": [1.0, "x"]}, r"column 'a': sample 1 of the batch \(id 101\) has 'x', expected a finite number"),
        ({"a": [1.0, math.inf]}, r"\(id 101\) has inf, expected a finite number"),
    ],
)
def test_a_column_without_scores_is_named(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(build(RewardInference, rewards=[part("a")]), batch_of(2, **columns))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"function": "mth"}, "there is no reward 'mth'; did you mean 'math'"),
        ({"function": f"{HERE}:constant", "kwargs": {"valu": 1}}, "no keyword argument 'valu'; did you mean 'value'"),
        ({"function": "missing_module:f"}, "module 'missing_module' can't be imported"),
        ({"reasoning_gym": "palindrome"}, "reasoning-gym has no data set 'palindrome'"),
        ({"reasoning_gym": "palindrome_generation", "config": {"length": 3}}, "Its fields: .*min_length"),
    ],
)
def test_a_component_that_can_not_be_made_is_named_before_anything_runs(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)'mine' \(models\.module\.args\.rewards\.0\): .*{words}"):
        build(RewardInference, rewards=[{"name": "mine", **spec}])


@pytest.mark.parametrize(
    ("args", "place", "words"),
    [
        ({"rewards": [{"name": "a"}]}, ("rewards", 0), "the component 'a' has no source of scores"),
        (
            {"rewards": [{"name": "a", "function": "math", "column": "b"}]},
            ("rewards", 0),
            "the component 'a' has function and column",
        ),
        (
            {"rewards": [{"name": "a", "column": "b", "kwargs": {"x": 1}}]},
            ("rewards", 0),
            "`kwargs` belongs to function, but the component 'a' has column",
        ),
        (
            {"rewards": [{"name": "a", "function": "math", "binary": True}]},
            ("rewards", 0),
            "`binary` belongs to reasoning_gym",
        ),
        ({"rewards": [part("a", clip=[1, 0])]}, ("rewards", 0, "clip"), "the first number has to be below the second"),
        ({"rewards": [part("a/b")]}, ("rewards", 0, "name"), "should match pattern"),
        ({"rewards": [part("a", weight=NAN)]}, ("rewards", 0, "weight"), "finite number"),
        ({"rewards": [part("a"), part("a")]}, ("rewards",), "two components have the name 'a'"),
        ({"rewards": [part("a", weight=0)]}, ("rewards",), "all weights are 0"),
        ({"reward": "math", "rewards": [part("a")]}, ("rewards",), "`reward` stands beside it"),
        ({"rewards": [part("a")], "accuracy_of": "b"}, ("accuracy_of",), "no component has the name 'b'"),
        ({"accuracy_of": "b"}, ("accuracy_of",), "no component has the name 'b'"),
        (
            {"rewards": [part("a")], "combine": "normalize_then_sum", "unfinished_reward": 0},
            ("unfinished_reward",),
            "no fixed scale",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(args: dict[str, Any], place: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        RewardInference.Args(**args)
    assert [error["loc"] for error in caught.value.errors()] == [place]


def test_a_function_of_the_constructor_does_not_go_with_components() -> None:
    with pytest.raises(ConfigError, match=r"models\.module\.args\.rewards lists components, but the constructor got"):
        build(RewardInference, constant, rewards=[part("a")])


def test_the_call_helper_of_these_tests_and_the_engine_agree_on_ids() -> None:
    """Outside of an engine a step still runs, without ids."""
    module = build(RewardInference, rewards=[part("a")])
    assert call(module, "forward_step", batch_of(2, a=[1.0, 2.0]))["rewards"].tolist() == [1.0, 2.0]


def test_the_page_on_rewards_names_every_key_of_a_component_and_every_short_name() -> None:
    page = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    first = " ".join(cells[0] for cells in rows) + " ".join(line for line in page.splitlines() if "kwargs`," in line)
    assert [key for key in RewardComponentArgs.model_fields if f"`{key}`" not in first] == []
    assert [name for name in REWARDS if f"`{name}`" not in page and f"`{name}: NAME`" not in page] == []


def test_normalising_in_groups_of_one_is_refused_at_the_first_batch() -> None:
    """Every reward would be 0, and nothing would be learned. An evaluation has no groups, and normalises nothing."""
    parts = [part("a"), part("b")]
    module = build(RewardInference, rewards=parts, combine="normalize_then_sum")
    data = batch_of(4, a=[1.0, 2.0, 3.0, 4.0], b=[0.0, 0.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match=r"(?s)models\.module\.args\.combine.*num_inference_per_prompt to 2"):
        run(module, data)
    assert run(module, data, step="eval_step")["rewards"].tolist() == [1.0, 2.0, 4.0, 5.0]
    assert run(module, data, [0, 0, 1, 2])["rewards"].tolist()[2:] == [0.0, 0.0], "some groups are of one"


def test_a_sum_that_float32_can_not_hold_names_its_sample() -> None:
    module = build(RewardInference, rewards=[part("a", weight=1e20), part("b")])
    with pytest.raises(DataError, match=r"module: the reward of sample 1 of the batch \(id 101\) is too large"):
        run(module, batch_of(2, a=[1.0, 1e30], b=[1.0, 1.0]))


@pytest.mark.parametrize("value", [1e300, -(10**400)])
def test_a_column_with_a_number_that_float32_can_not_hold_names_its_sample(value: float) -> None:
    module = build(RewardInference, rewards=[part("a")])
    with pytest.raises(DataError, match=r"component 'a'.*column 'a': sample 1 of the batch \(id 101\) has .*float32"):
        run(module, batch_of(2, a=[1.0, value]))


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_score_for_unfinished_responses_has_to_be_a_number(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        RewardComponentArgs(**part("a", unfinished=value))


def test_keyword_arguments_of_the_wrong_type_name_the_component_and_where_it_stands() -> None:
    odd = part("long", function="overlong_penalty", kwargs={"max_length": "4", "buffer": 2})
    words = r"component 'long' \(models\.module\.args\.rewards\.1\).*max_length='4', buffer=2: TypeError"
    with pytest.raises(ConfigError, match=words):
        build(RewardInference, rewards=[part("a"), odd])
