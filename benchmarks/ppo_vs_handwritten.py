"""CPU-seconds per PPO step through the engine, divided by those of a hand-written loop with the same settings.

Both run the demo's task in this process on one thread, in turn: six models (policy, reference, value, reward, two
trainers) against three networks and plain functions; the same batches of 256 samples, two minibatches, the same KL
penalty. The engine's figure includes all that a run leaves behind (metrics, TensorBoard, samples) and its parameter
sync; evaluation, start-up and set-up are left out on both sides.

    python benchmarks/ppo_vs_handwritten.py [--alternations 7] [--steps 20] [--model FOLDER]

Prints a row per alternation and the median ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from handwritten_ppo import run as run_handwritten

from chatlearn import RLHFEngine, init
from chatlearn.config.load import load_config
from chatlearn.modules.torch import (
    PolicyInference,
    PolicyReference,
    PolicyTrainer,
    RewardInference,
    ValueInference,
    ValueTrainer,
)
from chatlearn.recipes import RECIPES
from chatlearn.recipes.ppo import recipe
from chatlearn.recipes.tasks.spell_backward import build_model, build_tokenizer, load_splits

boundaries: list[float] = []
"""CPU time at the beginning of each episode."""


class TimedPolicy(PolicyInference):
    """The recipe's policy, which notes when an episode begins."""

    def before_episode(self) -> None:
        boundaries.append(time.process_time())


def run_engine(model_folder: Path, num_steps: int, seed: int, training: list[dict]) -> float:
    """CPU-seconds per step, from the beginning of one episode to that of the next; the first episode warms up."""
    boundaries.clear()
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(io.StringIO()):
        overrides = [
            f"runtime.num_episode={num_steps + 2}",
            f"runtime.seed={seed}",
            f"runtime.output_dir={output_dir}",
            "runtime.eval_episode_interval=0",
            "runtime.save_episode_interval=0",
            "runtime.export=[]",
        ]
        config = load_config(RECIPES["ppo"].config_path, overrides)
        init(recipe.DEMO.settled(config, str(model_folder), resume="never"))
        engine = RLHFEngine(
            TimedPolicy("policy"),
            PolicyReference("reference"),
            RewardInference("reward"),
            ValueInference("value"),
            PolicyTrainer("ppo_policy"),
            ValueTrainer("ppo_value"),
        ).set_dataset(training)
        engine.learn()
        engine.stop()
    return (boundaries[-1] - boundaries[1]) / (len(boundaries) - 2)


def main() -> None:
    """Alternates the two and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--model", type=Path, help="folder of a warm start; a new model with random weights if left out"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training = load_splits().training
    ratios, table = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch)
        if arguments.model is None:
            tokenizer = build_tokenizer()
            build_model(tokenizer, seed=0).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        print(f"{'':>12} {'engine':>10} {'hand-written':>13} {'ratio':>7}   CPU-s per step of 256 samples, one thread")
        for number in range(arguments.alternations):
            ours = run_engine(folder, arguments.steps, number, training)
            theirs = run_handwritten(folder, arguments.steps, number)["cpu_seconds_per_step"]
            table.append((ours, theirs))
            ratios.append(ours / theirs)
            print(f"{number + 1:>12} {ours:>10.4f} {theirs:>13.4f} {ratios[-1]:>7.3f}", flush=True)
    ours, theirs = (statistics.median(column) for column in zip(*table, strict=True))
    print(f"{'median':>12} {ours:>10.4f} {theirs:>13.4f} {statistics.median(ratios):>7.3f}")


if __name__ == "__main__":
    main()
