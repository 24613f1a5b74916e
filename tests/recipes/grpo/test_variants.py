"""Every recipe's configuration and flows hold together, and each variant is what its name says.

That they learn is measured by benchmarks/recipe_seeds.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from chatlearn.cli import main
from chatlearn.config.load import load_config
from chatlearn.recipes import RECIPES
from chatlearn.recipes.tasks import palindrome

VARIANTS = [name for name, recipe in RECIPES.items() if recipe.module == "grpo.recipe"]


def args_of(name: str, model: str) -> dict[str, Any]:
    return load_config(RECIPES[name].config_path).models[model].args


@pytest.mark.parametrize("name", list(RECIPES))
def test_each_recipe_checks(name, capsys) -> None:
    assert main(["check", name]) == 0
    printed = capsys.readouterr().out
    assert "policy.forward_step" in printed
    assert "ppo_policy.train_step" in printed


def test_the_family_is_complete() -> None:
    assert {"grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "gspo", "cispo"} <= set(VARIANTS)
    assert {load_config(RECIPES[name].config_path).runtime.exp_name for name in VARIANTS} == set(VARIANTS)


def test_the_variants_differ_as_their_papers_do() -> None:
    assert args_of("dr_grpo", "advantages")["estimator"] == "dr_grpo"
    assert args_of("dr_grpo", "ppo_policy")["aggregation"] == "constant"
    assert args_of("rloo", "advantages")["estimator"] == "rloo"
    assert args_of("reinforce_pp", "ppo_policy")["whiten_advantages"] is True
    assert args_of("dapo", "ppo_policy")["clip_high"] == 0.28
    assert [part["name"] for part in args_of("dapo", "reward")["rewards"]] == ["spelling", "overlong"]
    assert load_config(RECIPES["dapo"].config_path).runtime.max_refill_rounds > 0
    assert args_of("gspo", "ppo_policy")["loss"] == "gspo"
    assert args_of("cispo", "ppo_policy")["loss"] == "cispo"


@pytest.mark.slow
def test_a_short_run_of_dapo_fills_up_and_one_of_the_second_task_reports_apart(tmp_path) -> None:
    short = [
        "models.warm_start.args.num_steps=50",
        "runtime.num_episode=2",
        "runtime.eval_episode_interval=0",
        f"runtime.output_dir={tmp_path}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("dapo", "palindrome"):
        command = [sys.executable, "-m", "chatlearn", "run", name, *short]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "dapo" / "metrics.jsonl").read_text().splitlines()]
    assert all("refill/rounds" in row and 0 < row["advantages/signal"] <= 1 for row in rows)
    result = json.loads((tmp_path / "palindrome" / "result.json").read_text())
    assert set(result["further"]) == {palindrome.UNSEEN}
    assert 0 <= result["further"][palindrome.UNSEEN]["final_accuracy"] <= 1


def test_the_letters_of_the_apart_reported_prompts_are_in_no_other_split() -> None:
    splits = palindrome.load_splits()

    def letters(samples):
        return {"".join(sorted(sample["entry"]["metadata"]["letters"])) for sample in samples}

    questions = [sample["prompt"] for sample in splits.held_out + splits.tuning]
    assert len(set(questions)) == len(questions) == 512
    assert not set(questions) & {sample["prompt"] for sample in splits.training}
    apart = letters(splits.further[palindrome.UNSEEN])
    assert len(apart) == 128
    assert not apart & letters(splits.training + splits.held_out + splits.tuning)


def test_only_a_palindrome_of_just_these_letters_is_rewarded() -> None:
    entry = {"metadata": {"letters": ["a", "b", "a"]}}
    given = ["aba", "aa", "aab", "cac", "", "aba"]
    finished = [True, True, True, True, True, False]
    assert palindrome.reward([""] * 6, given, [entry] * 6, finished) == [1, 0, 0, 0, 0, 0]
