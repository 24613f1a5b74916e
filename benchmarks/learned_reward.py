"""PPO with a learned reward: beside a verifier, alone, and alone with too weak a bond to the reference.

    python benchmarks/learned_reward.py            about ten runs, a quarter of an hour of CPU time on one core
    python benchmarks/learned_reward.py --seeds 0  one seed of each

Workload: the recipes ``ppo_learned_reward`` (the reference of the comparison) and ``learned_only`` with their own
settings, and ``learned_only`` with a tenth of its KL coefficient. Warm start and reward model are made once, by
the first run; the seed is that of PPO. Prints one table: exact matches on 256 held-out prompts before and after, the
learned score and the KL at the end, and the CPU seconds of each process; below it the share of held-out pairs that the
reward model orders as the verifier does. ``--picture`` draws ``docs/images/over-optimisation.png`` from the metrics.

Runs that are finished in ``--folder`` are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "over-optimisation.png"
SETTINGS = {
    "beside a verifier, KL 0.005": ("beside_verifier", "ppo_learned_reward", {}),
    "alone, KL 0.05": ("alone_kl_0.05", "learned_only", {}),
    "alone, KL 0.005": ("alone_kl_0.005", "learned_only", {"models.reward.args.kl_coef": 0.005}),
}
"""Row of the table -> name of the run, recipe, what differs from the recipe's configuration."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/learned_reward"), help="of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--picture", action="store_true", help=f"draw {PICTURE.name} anew")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / f"beside_verifier_seed{options.seeds[0]}"
    print("| reward | seed | before | after | learned score, end | KL, end | CPU s |\n|---|---|---|---|---|---|---|")
    for title, (name, recipe, changes) in SETTINGS.items():
        for seed in options.seeds:
            run = folder / f"{name}_seed{seed}"
            seconds = train(recipe, run, first, {**changes, "runtime.seed": seed})
            result, rows = json.loads((run / "result.json").read_text()), metrics(run)
            print(
                f"| {title} | {seed} | {result['start_accuracy']:.3f} | {result['final_accuracy']:.3f} | "
                f"{last(rows, 'eval/reward/reward/learned'):.2f} | {last(rows, 'reward/kl'):.3f} | {seconds} |",
                flush=True,
            )
    accuracy = json.loads((first / "reward_model" / "result.json").read_text())["pair_accuracy"]
    print(f"\nHeld-out pair accuracy of the reward model: {accuracy:.3f}")
    if options.picture:
        draw(folder, options.seeds)
        print(f"Drawn: {PICTURE}")


def train(recipe: str, run: Path, first: Path, settings: dict[str, Any]) -> str:
    """Runs a recipe in a process of its own, unless it has been finished; returns its CPU seconds."""
    result = run / "result.json"
    if result.exists() and json.loads(result.read_text())["status"] == "finished":
        return "-"
    settings = {**settings, "runtime.output_dir": str(run.parent), "runtime.exp_name": run.name}
    if run != first:
        settings["models.policy.args.model_path"] = str(first / "warm_start" / "policy")
        settings["models.reward.args.rewards"] = components(recipe, first / "reward_model" / "policy")
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (run.parent / f"{run.name}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "chatlearn", "run", recipe, *words, "--resume", "auto"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return f"{after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime:.0f}"


def components(recipe: str, reward_model: Path) -> list[dict[str, Any]]:
    """The recipe's reward components, with the reward model of another run."""
    from chatlearn.config.load import load_config
    from chatlearn.recipes import RECIPES

    parts = [dict(part) for part in load_config(RECIPES[recipe].config_path).model("reward").args["rewards"]]
    return [
        {**part, "model": {**part["model"], "model_path": str(reward_model)}} if "model" in part else part
        for part in parts
    ]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of the episodes."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """A metric by episode, where it was measured."""
    return [(row["episode"], row[key]) for row in rows if row.get(key) is not None]


def last(rows: list[dict[str, Any]], key: str) -> float:
    """The mean of a metric's last three measurements."""
    return statistics.fmean(value for _, value in series(rows, key)[-3:])


def draw(folder: Path, seeds: list[int]) -> None:
    """What the policy was trained for beside what was meant, over the course of training."""
    from matplotlib.figure import Figure

    panels = {
        "eval/reward/reward/learned": "what it is trained for: learned score",
        "eval/reward/accuracy": "what was meant: exact matches",
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for label, color in (("alone, KL 0.05", "tab:blue"), ("alone, KL 0.005", "tab:red")):
            for seed in seeds:
                points = series(metrics(folder / f"{SETTINGS[label][0]}_seed{seed}"), key)
                axis.plot(
                    *zip(*points, strict=True),
                    color=color,
                    linewidth=1.3,
                    alpha=0.8,
                    label=label.removeprefix("alone, ") if seed == seeds[0] else None,
                )
        axis.set(xlabel="episode", title=title)
        axis.grid(alpha=0.25)
        axis.legend()
    figure.axes[1].set_ylim(0, 1.02)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
