"""The warm start: a new model, fitted to an imperfect demonstrator. A flow of one trainer without an environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from chatlearn.config.active import init
from chatlearn.config.load import load_config
from chatlearn.config.schema import Config
from chatlearn.engine.engine import Engine
from chatlearn.engine.trainer import Trainer
from chatlearn.modules.torch.huggingface import quiet
from chatlearn.modules.torch.sft_trainer import SFTTrainer
from chatlearn.recipes.tasks.base import Sample, Task, load_task

# pyright: reportUnknownMemberType=false
# transformers leaves some types open.

NAME = "warm_start"
BATCH_SIZE = 128
STEPS_PER_EPISODE = 25


class WarmStart(SFTTrainer):
    """Supervised fine-tuning of the demo's model."""

    class Args(SFTTrainer.Args):
        """``models.warm_start.args``."""

        task: str = Field(
            "spell_backward",
            description="what is learned: a module of chatlearn.recipes.tasks, or the import path of one of your own",
        )
        seed: int = Field(0, ge=0, description="of the new model's weights, the demonstrations and their order")
        num_steps: int = Field(
            700,
            ge=STEPS_PER_EPISODE,
            description=f"train steps of {BATCH_SIZE} samples, in episodes of {STEPS_PER_EPISODE}",
        )


def warm_start_engine(config: Config, folder: Path, training: list[Sample]) -> tuple[Config, Engine]:
    """The engine of the warm start and its configuration; the new model is written to
    ``<folder>/warm_start/initial``.
    """
    args = config.models[NAME].args
    seed, num_steps = args.get("seed", 0), args.get("num_steps", 700)
    task = configured_task(config)
    tokenizer = task.build_tokenizer()
    with quiet():
        task.build_model(tokenizer, seed).save_pretrained(folder / NAME / "initial")
    tokenizer.save_pretrained(folder / NAME / "initial")
    settings: dict[str, Any] = {
        "runtime.exp_name": NAME,
        "runtime.output_dir": str(folder),
        "runtime.resume": "auto",
        "runtime.data_checkpoint_path": None,
        "runtime.load_data_checkpoint_iteration": None,
        "runtime.num_inference_per_prompt": 1,
        "runtime.max_replay_episode": 1,
        "runtime.max_refill_rounds": 0,
        "runtime.refill_round_size": None,
        "runtime.seed": seed,
        "runtime.num_episode": max(num_steps // STEPS_PER_EPISODE, 1),
        "runtime.sample_per_episode": BATCH_SIZE * STEPS_PER_EPISODE,
        "runtime.train_micro_batch_size": BATCH_SIZE,
        "runtime.train_global_batch_size": BATCH_SIZE,
        "runtime.save_episode_interval": 4,
        "runtime.log_interval": 4,
        "runtime.export": [NAME],
        f"models.{NAME}.args.model_path": str(folder / NAME / "initial"),
    }
    demonstrations = task.imperfect_demonstrations(training, seed, BATCH_SIZE * num_steps)
    return settled(config, settings, [NAME]), warm_start_flow(demonstrations)


def configured_task(config: Config) -> Task:
    """The task that ``models.warm_start.args.task`` names."""
    return load_task(config.model(NAME).args.get("task", "spell_backward"))


def warm_start_flow(demonstrations: list[Sample]) -> Engine:
    """``Engine(None, trainer)``: the data set feeds the trainer."""
    sft = WarmStart(NAME)
    return Engine(None, Trainer(lambda batch: sft.train_step(batch))).set_dataset(demonstrations)


def run_warm_start(config: Config, folder: Path, training: list[Sample]) -> Path:
    """Trains (or resumes, or finds finished) the warm start of a run; returns the folder of its model."""
    warm_config, engine = warm_start_engine(config, folder, training)
    init(warm_config)
    engine.learn()
    engine.stop()
    return folder / NAME / "policy"


def settled(config: Config, settings: dict[str, Any], models: list[str]) -> Config:
    """``config`` with some keys set, and with these models only."""
    changed = load_config(config, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    return changed.model_copy(update={"models": {name: changed.model(name) for name in models}})
