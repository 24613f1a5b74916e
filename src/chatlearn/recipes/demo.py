"""What the recipes on small tasks share: a warm start, reinforcement learning, and a held-out test before and after."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.run_folder import RunFolder, claim_run_folder
from chatlearn.config.active import init
from chatlearn.config.schema import Config, RuntimeConfig
from chatlearn.engine.engine import Engine
from chatlearn.engine.evaluator import Evaluation, Evaluator
from chatlearn.errors import CheckpointError
from chatlearn.recipes.tasks.base import Sample, TaskSplits
from chatlearn.recipes.warm_start import NAME, configured_task, run_warm_start, settled, warm_start_engine


@dataclass(frozen=True)
class Demo:
    """A recipe on a small task.

    Attributes:
        build: configuration -> engine, and the flow that evaluates it.
        loading: names of the modules that load the warm start's model; those without an entry take no part.
        rules: names of the modules without a model of their own.
    """

    build: Callable[[Config], tuple[Engine, Callable[[Any], Any]]]
    loading: Collection[str]
    rules: Collection[str]

    def run(self, config: Config) -> None:
        """Trains from beginning to end."""
        folder = claim_until_measured(config.runtime)
        if folder.checkpoint is None:  # else the engine says where it goes on
            print(folder.note, flush=True)
        if folder.finished:
            return
        (folder.path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")  # a run from here on, to resume
        splits = configured_task(config).load_splits()
        model_path = _own_model(config) or str(run_warm_start(config, folder.path, splits.training))
        engine, eval_flow = self._prepared(config, splits, model_path, resume=str(folder.checkpoint or folder.path))
        tests = {"held-out": splits.held_out, **splits.further}
        before = _measure(engine, eval_flow, tests)
        print(f"\nHeld-out accuracy before reinforcement learning: {_accuracy(before['held-out']):.3f}\n")
        engine.learn()
        _conclude(engine, before, _measure(engine, eval_flow, tests))
        engine.stop()

    def check(self, config: Config) -> str:
        """Checks configuration and flows of both parts without starting anything; returns the flows as text."""
        splits = configured_task(config).load_splits()
        with tempfile.TemporaryDirectory() as name:
            model_path = _own_model(config)
            texts: list[str] = []
            if model_path is None:
                warm_config, warm_start = warm_start_engine(config, Path(name), splits.training)
                init(warm_config)
                texts.append(warm_start.check())
                model_path = str(Path(name) / NAME / "initial")
            engine, _ = self._prepared(config, splits, model_path, resume=config.runtime.resume)
            return "\n\n".join([*texts, engine.check()])

    def rebuild(self, config: Config, folder: Path) -> Engine:
        """The engine of a run that lies in a folder, over the model that the warm start has left there.

        Raises:
            CheckpointError: the model is gone.
        """
        left = folder / NAME / "policy"
        if (model_path := _own_model(config) or str(left)) == str(left) and not left.is_dir():
            raise CheckpointError(f"{left} is gone, the model that the run in {folder} began with.")
        return self._prepared(config, configured_task(config).load_splits(), model_path, config.runtime.resume)[0]

    def _prepared(
        self, config: Config, splits: TaskSplits, model_path: str, resume: str
    ) -> tuple[Engine, Callable[[Any], Any]]:
        """The engine with its data, and the flow that evaluates it."""
        init(self.settled(config, model_path, resume))
        engine, eval_flow = self.build(config)
        engine.set_dataset(splits.training).set_evaluator(Evaluator(eval_flow).set_dataset(splits.tuning))
        return engine, eval_flow

    def settled(self, config: Config, model_path: str, resume: str) -> Config:
        """The configuration of reinforcement learning: models without a ``model_path`` of their own start from this
        one.
        """
        models = [name for name in (*self.loading, *self.rules) if name in config.models]
        without = [name for name in self.loading if name in models and "model_path" not in config.model(name).args]
        settings = {f"models.{name}.args.model_path": model_path for name in without}
        return settled(config, {**settings, "runtime.resume": resume}, models)


def claim_until_measured(runtime: RuntimeConfig) -> RunFolder:
    """The folder of a recipe's run, as :func:`~chatlearn.checkpoint.run_folder.claim_run_folder` gives it; but such a
    run is finished once its held-out figures are written, which is after the engine's end.
    """
    folder = claim_run_folder(runtime)
    return claim_run_folder(runtime) if folder.finished and reopened(folder.path, "final_accuracy") else folder


def reopened(run: Path, figure: str) -> bool:
    """Takes back the end of a run that was killed after it and before ``figure`` was in its ``result.json``.

    It then goes on from its last checkpoint, comes to the same end, and can be measured.

    Returns:
        Whether that was so.
    """
    path = run / "result.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("status") != "finished" or figure in known:
        return False
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps({**known, "status": "interrupted"}, indent=1) + "\n", encoding="utf-8")
    aside.rename(path)
    return True


def _own_model(config: Config) -> str | None:
    """The policy's ``model_path``, if the configuration names one; then there is no warm start."""
    return config.model("policy").args.get("model_path")


def _measure(engine: Engine, eval_flow: Callable[[Any], Any], tests: dict[str, list[Sample]]) -> dict[str, Evaluation]:
    return {name: engine.evaluate(Evaluator(eval_flow).set_dataset(samples)) for name, samples in tests.items()}


def _accuracy(evaluation: Evaluation) -> float:
    return evaluation.metrics["eval/reward/accuracy"]


def _conclude(engine: Engine, before: dict[str, Evaluation], after: dict[str, Evaluation]) -> None:
    """Writes the held-out figures into the run folder and shows what came of the run."""
    from rich.console import Console

    run = engine.run
    start, end = (_accuracy(measured["held-out"]) for measured in (before, after))
    further = {
        name: {"start_accuracy": _accuracy(before[name]), "final_accuracy": _accuracy(after[name])}
        for name in before
        if name != "held-out"
    }
    run.draw_curve({"held-out, start": (0, start), "held-out, end": (run.state.episode, end)})
    run.write_result(start_accuracy=start, final_accuracy=end, **({"further": further} if further else {}))
    console = Console()
    console.print(_examples(before["held-out"], after["held-out"]))
    for name in before:
        console.print(
            f"{name[:1].upper()}{name[1:]} accuracy: {_accuracy(before[name]):.3f} -> {_accuracy(after[name]):.3f} "
            f"(exact matches on {sum(len(batch['prompt']) for batch in after[name].results)} prompts never trained on)"
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
    name = os.path.relpath(run.path)
    console.print(
        "\nWhat to try next (`chatlearn` lies in .venv/bin of a checkout):\n"
        "  chatlearn run ppo runtime.seed=1   another seed; any key can be set like this\n"
        "  chatlearn run grpo                 groups instead of a value model\n"
        "  chatlearn check ppo                the flows of a recipe\n"
        f"  chatlearn report {name:<17} curves, samples and times as a page\n"
        "  docs/quickstart.md                 a program of your own (in a checkout)",
        highlight=False,
    )


def _examples(before: Evaluation, after: Evaluation) -> Any:
    from rich.table import Table

    table = Table("question", "before", "after", "wanted", title="Five held-out prompts")
    first, last = before.results[0], after.results[0]
    for row in range(min(5, len(first["prompt"]))):
        question = first["prompt"][row].strip().rsplit(": ", 1)[-1]
        table.add_row(question, first["response"][row], last["response"][row], first["answer"][row])
    return table
