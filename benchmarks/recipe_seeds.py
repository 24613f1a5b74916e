"""Recipes over warm-start seeds and reinforcement-learning seeds: held-out accuracy, and the curves as a picture.

    python benchmarks/recipe_seeds.py --recipes ppo grpo [--warm 0 1] [--seeds 0 1 2 3 4] [--shuffled] [--jobs 1]
        [--curves FILE.png] [KEY=VALUE ...]

Each run is a process of its own, `chatlearn run RECIPE`, on one thread. The warm start depends on the task, on its
length and its own seed alone, so recipes share it. Prints held-out accuracy before and after, from each run's
result.json. `--shuffled` adds a control for each seed whose rewards are dealt to the wrong samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chatlearn.config.load import load_config
from chatlearn.recipes import RECIPES

_SHUFFLED = "models.reward.args.reward=chatlearn.recipes.tasks.spell_backward:shuffled_reward"


def run_recipe(recipe: str, output_dir: Path, name: str, *overrides: str) -> dict[str, Any]:
    """One run; its result.json, and ``curve``: the accuracy of the sampled responses by episode."""
    command = [sys.executable, "-m", "chatlearn", "run", recipe, f"runtime.output_dir={output_dir}"]
    command += [f"runtime.exp_name={name}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    run = output_dir / name
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    curve = {row["episode"]: row["reward/accuracy"] for row in rows if "reward/accuracy" in row}
    return {**json.loads((run / "result.json").read_text()), "curve": curve}


def warm_start(recipe: str, seed: int, folder: Path, *overrides: str) -> str:
    """The folder of a warm start, made by a run of the recipe that ends soon after."""
    args = load_config(RECIPES[recipe].config_path).models["warm_start"].args
    name = f"{args.get('task', 'spell_backward')}-{args['num_steps']}-warm{seed}"
    model = folder / name / "warm_start" / "policy"
    if not model.exists():
        shortest = ["runtime.num_episode=1", "runtime.eval_episode_interval=0", f"models.warm_start.args.seed={seed}"]
        run_recipe(recipe, folder, name, *overrides, *shortest)
    return str(model)


def show(recipe: str, warm: int, seed: str, result: dict[str, Any]) -> None:
    """One row."""
    further = "".join(
        f"   {name}: {figures['start_accuracy']:.3f} -> {figures['final_accuracy']:.3f}"
        for name, figures in result.get("further", {}).items()
    )
    start, final = result["start_accuracy"], result["final_accuracy"]
    print(f"{recipe:>14} {warm:>10} {seed:>10} {start:>7.3f} {final:>7.3f}{further}", flush=True)


def draw(curves: dict[str, list[dict[int, float]]], path: Path) -> None:
    """One line per recipe, the mean over its runs, in a band from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for recipe, runs in curves.items():
        episodes = sorted(set.intersection(*(set(run) for run in runs)))
        columns = [[run[episode] for run in runs] for episode in episodes]
        (line,) = axes.plot(episodes, [*map(statistics.mean, columns)], label=recipe, linewidth=1.5)
        axes.fill_between(episodes, [*map(min, columns)], [*map(max, columns)], color=line.get_color(), alpha=0.12)
    axes.set(xlabel="episode", ylabel="accuracy of the sampled responses", ylim=(0, 1.02), xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["ppo"], choices=list(RECIPES))
    parser.add_argument("--warm", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shuffled", action="store_true", help="add a control with shuffled rewards for each seed")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--curves", type=Path, help="write the learning curves to this picture")
    parser.add_argument("--keep", type=Path, help="keep the run folders here")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all runs")
    arguments = parser.parse_args()
    curves: dict[str, list[dict[int, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = arguments.keep or Path(scratch)
        print(f"{'recipe':>14} {'warm start':>10} {'seed':>10} {'start':>7} {'final':>7}   held-out accuracy")

        def one(recipe: str, warm: int, seed: int, model: str, shuffled: bool) -> None:
            name = f"{recipe}-warm{warm}-seed{seed}" + "-shuffled" * shuffled
            settings = [f"models.policy.args.model_path={model}", f"runtime.seed={seed}", *arguments.overrides]
            result = run_recipe(recipe, folder, name, *settings, *([_SHUFFLED] if shuffled else []))
            show(recipe, warm, f"{seed} shuffled" if shuffled else str(seed), result)
            if not shuffled:
                curves.setdefault(recipe, []).append(result["curve"])

        jobs = []
        for warm in arguments.warm:
            for recipe in arguments.recipes:
                model = warm_start(recipe, warm, folder, *arguments.overrides)
                kinds = (False, True) if arguments.shuffled else (False,)
                jobs += [
                    pool.submit(one, recipe, warm, seed, model, kind) for kind in kinds for seed in arguments.seeds
                ]
        for job in jobs:
            job.result()
    if arguments.curves:
        draw(curves, arguments.curves)


if __name__ == "__main__":
    main()
