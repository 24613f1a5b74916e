"""The engine of groups with the ready-made modules: options that only they have, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toys

import chatlearn
from chatlearn import GRPOEngine
from chatlearn.modules.torch import PolicyInference, PolicyReference, PolicyTrainer, RewardInference
from chatlearn.recipes.tasks.base import character_tokenizer, tiny_llama


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    tokenizer = character_tokenizer(["Say: "])
    tiny_llama(tokenizer, 0, 6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learn(folder: Path, model: str, trainer: dict[str, Any], advantages: dict[str, Any], **options: Any) -> list[dict]:
    """Rows of metrics of a short run."""
    names = ["policy", "reward", "ppo_policy", "advantages", *(["reference"] if "reference" in options else [])]
    args: dict[str, dict[str, Any]] = {name: {} for name in names}
    args["policy"] = {"model_path": model, "max_new_tokens": 5}
    args["ppo_policy"] = {"model_path": model, "learning_rate": 1e-3, **trainer}
    args["advantages"] = advantages
    if "reference" in options:
        args["reference"] = {"model_path": model}
    sizes = {"sample_per_episode": 16, "generation_batch_size": 8, "num_inference_per_prompt": 4}
    settings = toys.settings(folder, **sizes)
    chatlearn.init({**settings, "models": {name: {"args": values} for name, values in args.items()}})
    reference = options.pop("reference", None)
    engine = GRPOEngine(
        PolicyInference("policy"), reference, RewardInference("reward", lengths), PolicyTrainer("ppo_policy"), **options
    ).set_dataset([f"Say: {letter}" for letter in "abcdefgh"])
    with toys.quick_runs():
        engine.learn()
    engine.stop()
    return toys.rows_of(folder / "toy")


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_trainer_computes_what_importance_correction_needs(tmp_path, model, level) -> None:
    trainer = {"importance_level": level}
    for row in learn(tmp_path, model, trainer, {}, recompute_logprobs=True):
        assert row["ppo_policy/importance_weight"] == pytest.approx(1, abs=1e-4)
        assert row["ppo_policy/mismatch_max"] < 1e-4
    sample = json.loads((tmp_path / "toy" / "samples" / "episode-000002.jsonl").read_text().splitlines()[0])
    assert sample["old_logprobs"] == pytest.approx(sample["logprobs"], abs=1e-4)


def test_the_kl_to_a_reference_begins_at_zero(tmp_path, model) -> None:
    options = {"reference": PolicyReference("reference")}
    first, second = learn(tmp_path, model, {"kl_loss_coef": 0.1}, {"kl_coef": 0.01}, **options)
    assert first["advantages/kl"] == pytest.approx(0, abs=1e-5)
    assert second["ppo_policy/kl"] > 1e-6


def test_remax_has_its_greedy_baseline(tmp_path, model) -> None:
    rows = learn(tmp_path, model, {}, {"estimator": "remax"}, greedy_baseline=True)
    assert all(row["advantages/signal"] > 0 for row in rows)
