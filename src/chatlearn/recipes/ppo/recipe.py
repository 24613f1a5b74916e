"""PPO with six models on a task that a laptop learns in a minute: warm start, reinforcement learning, held-out test."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.run_folder import claim_run_folder
from chatlearn.config.active import init
from chatlearn.config.schema import Config
from chatlearn.engine.engine import Engine
from chatlearn.engine.evaluator import Evaluation, Evaluator
from chatlearn.engine.presets import RLHFEngine
from chatlearn.modules.torch import (
    PolicyInference,
    PolicyReference,
    PolicyTrainer,
    RewardInference,
    ValueInference,
    ValueTrainer,
)
from chatlearn.recipes.ppo.task import TaskSplits, load_splits
from chatlearn.recipes.ppo.warm_start import NAME, run_warm_start, settled, warm_start_engine

CONFIG = Path(__file__).with_name("ppo.yaml")
"""The recipe's configuration, where the command line names no other."""

MODELS = ["policy", "reference", "value", "reward", "ppo_policy", "ppo_value"]


def build(task: TaskSplits) -> tuple[RLHFEngine, Evaluator]:
    """The engine, evaluated on the tuning split, and an evaluator for the held-out split."""
    policy = PolicyInference("policy")
    reference = PolicyReference("reference")
    reward = RewardInference("reward")
    value = ValueInference("value")
    ppo_policy = PolicyTrainer("ppo_policy")
    ppo_value = ValueTrainer("ppo_value")

    def eval_flow(batch: Any) -> Any:
        return reward.eval_step(policy.eval_step(batch))

    engine = RLHFEngine(policy, reference, reward, value, ppo_policy, ppo_value)
    engine.set_dataset(task.training).set_evaluator(Evaluator(eval_flow).set_dataset(task.tuning))
    return engine, Evaluator(eval_flow).set_dataset(task.held_out)


def run(config: Config) -> None:
    """The whole demo; see the package's text."""
    folder = claim_run_folder(config.runtime)
    if folder.checkpoint is None:  # else the engine says where it goes on
        print(folder.note, flush=True)
    if folder.finished:
        return
    (folder.path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")  # a run from here on, to resume
    task = load_splits()
    model_path = _own_model(config) or str(run_warm_start(config, folder.path, task.training))
    init(ppo_config(config, model_path, resume=str(folder.checkpoint or folder.path)))
    engine, held_out = build(task)
    before = engine.evaluate(held_out)
    print(f"\nHeld-out accuracy before reinforcement learning: {_accuracy(before):.3f}\n")
    engine.learn()
    after = engine.evaluate(held_out)
    _conclude(engine, before, after)
    engine.stop()


def check(config: Config) -> str:
    """Checks configuration and flows of both parts without starting anything; returns the flows as text."""
    task = load_splits()
    with tempfile.TemporaryDirectory() as name:
        model_path = _own_model(config)
        texts: list[str] = []
        if model_path is None:
            warm_config, warm_start = warm_start_engine(config, Path(name), task.training)
            init(warm_config)
            texts.append(warm_start.check())
            model_path = str(Path(name) / NAME / "initial")
        init(ppo_config(config, model_path, resume=config.runtime.resume))
        engine, _ = build(task)
        return "\n\n".join([*texts, engine.check()])


def _own_model(config: Config) -> str | None:
    """The policy's ``model_path``, if the configuration names one; then there is no warm start."""
    return config.model("policy").args.get("model_path")


def ppo_config(config: Config, model_path: str, resume: str) -> Config:
    """Models without a ``model_path`` of their own start from this one."""
    with_model = [name for name in MODELS if name != "reward" and "model_path" not in config.model(name).args]
    settings = {f"models.{name}.args.model_path": model_path for name in with_model}
    return settled(config, {**settings, "runtime.resume": resume}, MODELS)


def _accuracy(evaluation: Evaluation) -> float:
    return evaluation.metrics["eval/reward/accuracy"]


def _conclude(engine: Engine, before: Evaluation, after: Evaluation) -> None:
    """Writes the held-out figures into the run folder and shows what came of the run."""
    from rich.console import Console
    from rich.table import Table

    run = engine.run
    episodes = run.state.episode
    run.write_result(start_accuracy=_accuracy(before), final_accuracy=_accuracy(after))
    run.draw_curve({"held-out, start": (0, _accuracy(before)), "held-out, end": (episodes, _accuracy(after))})
    table = Table("question", "before", "after", "wanted", title="Five held-out prompts")
    first, last = before.results[0], after.results[0]
    for row in range(5):
        table.add_row(
            first["prompt"][row].rsplit(": ", 1)[-1],
            first["response"][row],
            last["response"][row],
            first["answer"][row],
        )
    console = Console()
    console.print(table)
    console.print(
        f"Held-out accuracy: {_accuracy(before):.3f} -> {_accuracy(after):.3f} (exact matches on "
        f"{len(after.results[0]['prompt'])} words never trained on)"
    )
    lines = {
        "learning curve": "learning_curve.png",
        "metrics": "metrics.jsonl, tensorboard/",
        "samples": "samples/",
        "trained policy (Hugging Face format)": "policy/",
        "resolved configuration": "config.yaml",
    }
    console.print(f"\nEverything lies in {run.path}:", soft_wrap=True)
    for what, where in lines.items():
        console.print(f"  {where:<28} {what}", highlight=False)
    console.print(
        "\nWhat to try next (`chatlearn` lies in .venv/bin of a checkout):\n"
        "  chatlearn run ppo runtime.seed=1   another seed; any key can be set like this\n"
        "  chatlearn check ppo                the flows of this recipe\n"
        f"  chatlearn report {os.path.relpath(run.path):<17} curves, samples and times as a page\n"
        "  docs/quickstart.md                 a program of your own (in a checkout)",
        highlight=False,
    )
