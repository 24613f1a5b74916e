"""The demo over warm-start seeds and reinforcement-learning seeds, with a control whose rewards are shuffled.

    python benchmarks/demo_seeds.py [--warm 0 1] [--seeds 0 1 2 3 4] [--jobs 1]

Each run is a process of its own, `chatlearn run ppo`, on one thread. The warm start does not depend on the seed of
the run, so it is made once for each of its seeds. Prints held-out accuracy before and after, from each run's
result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NUM_CONTROLS = 3
"""Runs with shuffled rewards per warm start: one alone drifts either way."""


def run_demo(output_dir: Path, name: str, *overrides: str) -> dict:
    """One run; its result.json."""
    command = [
        sys.executable,
        "-m",
        "chatlearn",
        "run",
        "ppo",
        f"runtime.output_dir={output_dir}",
        f"runtime.exp_name={name}",
        *overrides,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads((output_dir / name / "result.json").read_text())


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(scratch)
        print(f"{'warm start':>10} {'seed':>10} {'start':>7} {'final':>7}   held-out accuracy, 256 words", flush=True)

        def of_warm_start(warm: int) -> None:
            first = run_demo(
                folder, f"warm{warm}", f"models.warm_start.args.seed={warm}", f"runtime.seed={arguments.seeds[0]}"
            )
            show(warm, str(arguments.seeds[0]), first)
            model = f"models.policy.args.model_path={folder}/warm{warm}/warm_start/policy"
            for seed in arguments.seeds[1:]:
                show(warm, str(seed), run_demo(folder, f"warm{warm}-seed{seed}", model, f"runtime.seed={seed}"))
            shuffled = "models.reward.args.reward=chatlearn.recipes.ppo.task:shuffled_reward"
            for seed in arguments.seeds[:NUM_CONTROLS]:
                name = f"warm{warm}-shuffled{seed}"
                show(warm, f"{seed} shuffled", run_demo(folder, name, model, shuffled, f"runtime.seed={seed}"))

        list(pool.map(of_warm_start, arguments.warm))


def show(warm: int, seed: str, result: dict) -> None:
    """One row."""
    print(f"{warm:>10} {seed:>10} {result['start_accuracy']:>7.3f} {result['final_accuracy']:>7.3f}", flush=True)


if __name__ == "__main__":
    main()
