"""The reward model: the warm start with a new head, fitted to preference pairs. A flow of one trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from chatlearn.config.active import init
from chatlearn.config.schema import Config
from chatlearn.engine.engine import Engine
from chatlearn.engine.evaluator import Evaluator
from chatlearn.engine.trainer import Trainer
from chatlearn.modules.torch import RewardTrainer
from chatlearn.recipes.demo import reopened
from chatlearn.recipes.ppo_learned_reward.preferences import make_preferences
from chatlearn.recipes.tasks.base import TaskSplits
from chatlearn.recipes.warm_start import settled

NAME = "reward_model"
BATCH_SIZE = 128
STEPS_PER_EPISODE = 10


class RewardModelTrainer(RewardTrainer):
    """Bradley-Terry training of the demo's reward model."""

    class Args(RewardTrainer.Args):
        """``models.reward_model.args``."""

        seed: int = Field(0, ge=0, description="of the preferences, the new head and the order of pairs")
        num_prompts: int = Field(16_000, ge=1, description="prompts that are answered twice, for pairs")
        num_steps: int = Field(
            150,
            ge=STEPS_PER_EPISODE,
            description=f"train steps of {BATCH_SIZE} pairs, in episodes of {STEPS_PER_EPISODE}",
        )


def reward_model_engine(
    config: Config, folder: Path, model_path: str, pairs: Sequence[Any] | Path, held_out: Sequence[Any] | Path
) -> tuple[Config, Engine]:
    """The engine that fits the reward model to pairs and measures it on others, and its configuration."""
    args = config.models[NAME].args
    settings: dict[str, Any] = {
        "runtime.exp_name": NAME,
        "runtime.output_dir": str(folder),
        "runtime.resume": "auto",
        "runtime.data_checkpoint_path": None,
        "runtime.load_data_checkpoint_iteration": None,
        "runtime.num_inference_per_prompt": 1,
        "runtime.max_replay_episode": 1,
        "runtime.seed": args.get("seed", 0),
        "runtime.num_episode": args.get("num_steps", 150) // STEPS_PER_EPISODE,
        "runtime.sample_per_episode": BATCH_SIZE * STEPS_PER_EPISODE,
        "runtime.train_micro_batch_size": BATCH_SIZE,
        "runtime.train_global_batch_size": BATCH_SIZE,
        "runtime.eval_episode_interval": 5,
        "runtime.save_episode_interval": 5,
        "runtime.log_interval": 5,
        "runtime.export": [NAME],
        f"models.{NAME}.args.model_path": model_path,
        f"models.{NAME}.args.new_head": True,
    }
    trainer = RewardModelTrainer(NAME)

    def fit_to_pairs(batch: Any) -> None:
        trainer.train_step(batch)

    def order_held_out_pairs(batch: Any) -> Any:
        return trainer.eval_step(batch)

    evaluator = Evaluator(order_held_out_pairs).set_dataset(held_out)
    engine = Engine(None, Trainer(fit_to_pairs), evaluator).set_dataset(pairs)
    return settled(config, settings, [NAME]), engine


def run_reward_model(config: Config, folder: Path, model_path: str, splits: TaskSplits) -> Path:
    """Makes preferences and trains (or resumes, or finds finished) the reward model of a run.

    Returns:
        The folder of the reward model. ``pair_accuracy`` in its run's ``result.json`` is the share of pairs of the
        held-out split that it orders as the verifier does.
    """
    args = config.models[NAME].args
    seed, num_prompts = args.get("seed", 0), args.get("num_prompts", 16_000)
    result = folder / NAME / "result.json"
    if not (result.exists() and "pair_accuracy" in json.loads(result.read_text(encoding="utf-8"))):
        training, held_out = make_preferences(config, folder, model_path, splits, num_prompts, seed)
        own_config, engine = reward_model_engine(config, folder, model_path, training, held_out)
        init(own_config)
        reopened(result.parent, "pair_accuracy")
        engine.learn()
        accuracy = engine.evaluate().metrics[f"eval/{NAME}/accuracy"]
        engine.run.write_result(pair_accuracy=accuracy)
        engine.stop()
        print(f"Held-out pair accuracy of the reward model: {accuracy:.3f}", flush=True)
    return folder / NAME / "policy"
