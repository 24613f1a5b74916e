"""Preference pairs without people: two responses of the warm start to each prompt, ranked by a verifier."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from chatlearn.config.active import init
from chatlearn.config.schema import Config
from chatlearn.engine.presets import EvalEngine
from chatlearn.modules.torch import PolicyInference, RewardInference
from chatlearn.recipes.tasks.base import Sample, TaskSplits
from chatlearn.recipes.warm_start import settled

FOLDER = "preferences"
SAMPLER, VERIFIER = "sampler", "verifier"


def sampling_engine(config: Config, model_path: str, seed: int) -> tuple[Config, EvalEngine]:
    """The engine that samples and scores two responses to each prompt, and its configuration."""
    settings: dict[str, Any] = {
        "runtime.seed": seed,
        "runtime.num_inference_per_prompt": 1,
        "runtime.export": [],
        f"models.{SAMPLER}.args.model_path": model_path,
    }
    sampler, verifier = PolicyInference(SAMPLER), RewardInference(VERIFIER)

    def answer_and_score(batch: Any) -> Any:
        return verifier.eval_step(sampler.forward_step(batch))

    return settled(config, settings, [SAMPLER, VERIFIER]), EvalEngine(answer_and_score)


def make_preferences(
    config: Config, folder: Path, model_path: str, splits: TaskSplits, num_prompts: int, seed: int
) -> tuple[Path, Path]:
    """Writes pairs of responses to prompts of the training split, and to those of the held-out split.

    Args:
        config: with the models ``sampler`` and ``verifier``.
        folder: of the run; pairs go to ``<folder>/preferences``. Those that are there stay.
        model_path: the model that answers.
        splits: the prompts.
        num_prompts: drawn of the training split, without replacement.
        seed: of the draw and of the responses.

    Returns:
        The two files, in JSON Lines.
    """
    training, held_out = (folder / FOLDER / f"{name}.jsonl" for name in ("training", "held_out"))
    if training.exists() and held_out.exists():
        return training, held_out
    num_prompts = min(num_prompts, len(splits.training))
    drawn = random.Random(seed).sample(splits.training, num_prompts)
    for path, samples in ((held_out, splits.held_out), (training, drawn)):
        own_config, engine = sampling_engine(config, model_path, seed)
        init(own_config)
        engine.set_dataset(list(chain.from_iterable((sample, sample) for sample in samples)))
        pairs = ranked_pairs(engine.eval().results)
        engine.stop()
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        aside.rename(path)
        print(f"{len(pairs)} preference pairs of {len(samples)} prompts: {path}", flush=True)
    return training, held_out


def ranked_pairs(results: Sequence[dict[str, Any]]) -> list[Sample]:
    """Pairs of neighbouring rows that have different rewards, the better response as ``chosen``.

    A pair with a response that was cut off is left out: how it would have ended is not known.

    Args:
        results: batches with ``prompt``, ``response``, ``rewards`` and ``finished``.
    """
    rows = [
        row
        for batch in results
        for row in zip(
            batch["prompt"], batch["response"], batch["rewards"].tolist(), batch["finished"].tolist(), strict=True
        )
    ]
    pairs: list[Sample] = []
    for (prompt, first, reward, finished), (_, second, other, other_finished) in zip(
        rows[::2], rows[1::2], strict=True
    ):
        if finished and other_finished and reward != other:
            better, worse = (first, second) if reward > other else (second, first)
            pairs.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return pairs
