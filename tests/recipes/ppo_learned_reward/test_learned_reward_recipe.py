"""The recipe with a learned reward, much shortened: its pairs, what it leaves behind, that it resumes.

That it learns is measured by benchmarks/learned_reward.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from chatlearn.config.load import load_config
from chatlearn.recipes import RECIPES
from chatlearn.recipes.ppo_learned_reward.preferences import ranked_pairs
from chatlearn.recipes.tasks.spell_backward import load_splits

SHORT = [
    "models.warm_start.args.num_steps=150",
    "models.reward_model.args.num_prompts=400",
    "models.reward_model.args.num_steps=20",
    "runtime.num_episode=6",
    "runtime.eval_episode_interval=3",
    "runtime.save_episode_interval=2",
    "runtime.log_interval=1",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(folder: Path, *arguments: str, recipe: str = "ppo_learned_reward") -> list[str]:
    return [sys.executable, "-m", "chatlearn", "run", recipe, f"runtime.output_dir={folder}", *SHORT, *arguments]


def finished(words: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False, cwd=cwd)


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without the times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_of_two_responses_the_one_with_the_higher_reward_is_chosen() -> None:
    """Equal rewards say nothing, and a response that was cut off has no end to judge."""
    first = {
        "prompt": ["p", "p", "q", "q"],
        "response": ["a", "b", "c", "d"],
        "rewards": torch.tensor([0.2, 0.9, 0.5, 0.5]),
        "finished": torch.tensor([True] * 4),
    }
    second = {
        "prompt": ["r", "r", "s", "s"],
        "response": ["e", "f", "g", "h"],
        "rewards": torch.tensor([1.0, 0.0, 1.0, 0.0]),
        "finished": torch.tensor([True, True, True, False]),
    }
    assert ranked_pairs([first, second]) == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "r", "chosen": "e", "rejected": "f"},
    ]


def test_the_variant_without_verifier_trains_for_the_learned_score_alone() -> None:
    both, alone = (load_config(RECIPES[name].config_path) for name in ("ppo_learned_reward", "learned_only"))
    weights = [
        {part["name"]: part["weight"] for part in config.model("reward").args["rewards"]} for config in (both, alone)
    ]
    assert weights == [{"verifier": 1.0, "learned": 0.25}, {"verifier": 0.0, "learned": 0.25}]
    assert (both.model("reward").args["kl_coef"], alone.model("reward").args["kl_coef"]) == (0.005, 0.05)


@pytest.mark.parametrize("recipe", ["ppo_learned_reward", "learned_only"])
def test_check_prints_all_flows_and_makes_nothing(tmp_path: Path, recipe: str) -> None:
    done = finished([sys.executable, "-m", "chatlearn", "check", recipe], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = ("warm_start.train_step", "sampler.forward_step", "reward_model.train_step", "ppo_value.train_step")
    assert [step for step in steps if step not in done.stdout] == []
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_key_of_the_reward_model_is_found_by_check(tmp_path: Path) -> None:
    key = "models.reward_model.args.num_promts=3"
    done = finished([sys.executable, "-m", "chatlearn", "check", "ppo_learned_reward", key], cwd=tmp_path)
    assert done.returncode == 1
    assert "num_prompts" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = finished(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "ppo_learned_reward", done.stdout


@pytest.mark.slow
def test_each_stage_leaves_its_result(demo: tuple[Path, str]) -> None:
    run, output = demo
    splits = load_splits()
    training, held_out = (
        {pair["prompt"] for pair in lines(run / "preferences" / f"{name}.jsonl")} for name in ("training", "held_out")
    )
    assert training <= {sample["prompt"] for sample in splits.training}
    assert held_out <= {sample["prompt"] for sample in splits.held_out}
    assert min(len(training), len(held_out)) > 50
    result, reward = (json.loads((folder / "result.json").read_text()) for folder in (run, run / "reward_model"))
    assert result["status"] == reward["status"] == "finished"
    assert f"{reward['pair_accuracy']:.3f}" in output
    for row in rows(run):
        assert {"reward/reward/verifier", "reward/reward/learned", "reward/kl"} <= row.keys()
    assert 0 <= result["final_accuracy"] <= 1


@pytest.mark.slow
def test_the_pair_accuracy_is_that_of_transformers_alone(demo: tuple[Path, str]) -> None:
    run, _ = demo
    folder = run / "reward_model" / "policy"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = lines(run / "preferences" / "held_out.jsonl")

    def score(prompt: str, response: str) -> float:
        ids = tokenizer(prompt)["input_ids"] + tokenizer(response, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([[*ids, tokenizer.eos_token_id]])).logits)

    right = [score(p["prompt"], p["chosen"]) > score(p["prompt"], p["rejected"]) for p in pairs]
    expected = json.loads((run / "reward_model" / "result.json").read_text())["pair_accuracy"]
    assert sum(right) / len(right) == pytest.approx(expected, abs=1.5 / len(right)), "but for one tie of rounding"


@pytest.mark.slow
def test_a_run_that_got_no_further_than_the_pairs_goes_on_from_there(demo: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = demo
    run = tmp_path / whole.name
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    for name in ("warm_start", "preferences"):
        shutil.copytree(whole / name, run / name)
    done = finished(command(tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    assert "preference pairs of" not in done.stdout, "they were there"
    assert rows(run / "reward_model") == rows(whole / "reward_model")
    assert rows(run) == rows(whole)


@pytest.mark.slow
def test_a_reward_model_that_was_never_measured_is_measured_when_the_run_is_resumed(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    """A run that was killed between the end of its training and the pair accuracy."""
    whole, _ = demo
    run = tmp_path / whole.name
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    for name in ("preferences", "reward_model"):
        shutil.copytree(whole / name, run / name)
    path = run / "reward_model" / "result.json"
    wanted = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in wanted.items() if key != "pair_accuracy"}))
    policy = f"models.policy.args.model_path={whole}/warm_start/policy"
    done = finished(command(tmp_path, policy, "runtime.num_episode=1", "--resume"))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert (result["status"], result["pair_accuracy"]) == ("finished", wanted["pair_accuracy"])
    assert rows(run / "reward_model") == rows(whole / "reward_model")


@pytest.mark.slow
def test_ctrl_c_in_the_last_stage_and_resume_give_the_same_run(demo: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = demo
    run = tmp_path / whole.name
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    for name in ("warm_start", "preferences", "reward_model"):
        shutil.copytree(whole / name, run / name)
    process = subprocess.Popen(
        command(tmp_path, "--resume"), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and (not (run / "metrics.jsonl").exists() or len(rows(run)) < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"runtime.resume={run}" in output
    assert len(rows(run)) < 6, "the interrupt came too late to test anything"
    done = finished(command(tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    assert rows(run) == rows(whole)
    again = finished(command(tmp_path, "--resume"))
    assert again.returncode == 0
    assert "is finished" in again.stdout
