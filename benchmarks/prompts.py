"""How long a million prompts take from `set_dataset` to the first batch, and whether an episode copies them.

The first batch is there when the first `forward_step` begins (`time.monotonic` inside of the step). Each run is a fresh
interpreter, so what chatlearn imports on the way counts too. Prompts come as a list of strings, as a list that
`build_dataset` wraps, and as a JSON Lines file named by `runtime.data_path`. Beside each, in the same interpreter: a
torch `DataLoader` with a `RandomSampler` over the same prompts to its first batch (of the file: over a list of its
lines, read with `json.loads`).

    python benchmarks/prompts.py [--runs 5] [--prompts 1000000]

Then 20 episodes over the list: growth of the process from the first to the last, the most that an episode allocates for
a moment (a copy of the list's references alone would be 8 MiB), and the data set that was built, which has to hold the
list itself. Prints two tables; exits with 1 where a list's median is above 2 s or prompts are copied.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from overhead import resident_mib
from torch.utils.data import DataLoader, RandomSampler

from chatlearn import BaseModule, Engine, Environment, init

BATCH, EPISODES = 64, 20
LIMIT_SECONDS = 2.0
FORMS = {
    "list": "a list of strings",
    "wrapped": "a list that build_dataset wraps",
    "file": "JSON Lines by runtime.data_path",
}


class First(BaseModule):
    """Notes when its first batch comes."""

    def setup(self) -> None:
        """Nothing has come yet."""
        self.first_batch: float | None = None

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        """Gives back what it got."""
        self.first_batch = self.first_batch or time.monotonic()
        return data


class Prompts:
    """A data set that holds on to the prompts."""

    def __init__(self, prompts: Any) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": self.prompts[index]}


class Wrapping(First):
    """Builds a data set of its own."""

    built: tuple[Prompts, ...] = ()

    def build_dataset(self, prompts: Any) -> Prompts:
        """Keeps what it built for a look from outside."""
        Wrapping.built += (Prompts(prompts),)
        return self.built[-1]


def strings(count: int) -> list[str]:
    """The prompts."""
    return [f"What is {number} plus {number % 977}? Answer with a number." for number in range(count)]


def make_engine(cls: type[First], output_dir: str, episodes: int, data_path: str | None = None) -> tuple[Engine, First]:
    """An engine that makes experience only."""
    runtime = {
        "num_episode": episodes,
        "sample_per_episode": BATCH * 4,
        "generation_batch_size": BATCH,
        "output_dir": output_dir,
        "log_interval": episodes,
    }
    init({"runtime": runtime | ({"data_path": data_path} if data_path else {})})
    module = cls("first")
    return Engine(Environment(lambda batch: module.forward_step(batch)), None), module


def engine_seconds(form: str, prompts: list[str], path: str) -> float:
    """From `set_dataset` (from `Engine.learn`, where the configuration names the file) to the first step."""
    with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(io.StringIO()):
        engine, module = make_engine(
            Wrapping if form == "wrapped" else First, output_dir, 1, path if form == "file" else None
        )
        start = time.monotonic()
        if form != "file":
            engine.set_dataset(prompts)
        engine.learn()
        (first,) = engine._deployed.apply(module.name, lambda replica: replica.first_batch)
        engine.stop()
    return first - start


def loader_seconds(form: str, prompts: list[str], path: str) -> float:
    """The same through torch's loader."""
    start = time.monotonic()
    if form == "file":
        with open(path, encoding="utf-8") as file:
            prompts = [json.loads(line)["prompt"] for line in file]
    next(iter(DataLoader(prompts, batch_size=BATCH, sampler=RandomSampler(prompts))))
    return time.monotonic() - start


def memory(count: int) -> dict[str, Any]:
    """Growth from the first to the 20th episode, the most that one of the others allocates, and what the data set
    holds.
    """
    prompts = strings(count)
    resident: list[float] = []
    references: list[int] = []
    peaks: list[float] = []

    def mark(info: Any) -> None:
        gc.collect()
        references.append(sys.getrefcount(prompts))
        resident.append(resident_mib())

    def trace(info: Any) -> None:
        if tracemalloc.is_tracing():
            peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
        tracemalloc.start()

    for function in (mark, trace):  # in runs of their own, since tracing takes memory itself
        Wrapping.built = ()
        with tempfile.TemporaryDirectory() as output_dir, contextlib.redirect_stdout(io.StringIO()):
            engine, _ = make_engine(Wrapping, output_dir, EPISODES)
            engine.add_callback("after_episode", function)
            engine.set_dataset(prompts).learn()
            engine.stop()
    return {
        "list": sys.getsizeof(prompts) / 2**20,
        "resident": [resident[0], resident[-1]],
        "peak": max(peaks),
        "references": [references[0], references[-1]],
        "built": len(Wrapping.built),
        "same": all(dataset.prompts is prompts for dataset in Wrapping.built),
    }


def child(form: str, count: int, path: str) -> dict[str, Any]:
    """What one fresh interpreter measures."""
    if form == "memory":
        return memory(count)
    prompts = [] if form == "file" else strings(count)
    return {"engine": engine_seconds(form, prompts, path), "loader": loader_seconds(form, prompts, path)}


def measured(form: str, count: int, path: Path) -> dict[str, Any]:
    """The same, by a fresh interpreter."""
    command = [sys.executable, __file__, "--child", form, "--prompts", str(count), "--path", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(found: dict[str, Any]) -> None:
    """The second table."""
    print(f"\n{f'{EPISODES} episodes':<34} {'first':>8} {'last':>8}")
    print(f"{'process, MiB':<34} {found['resident'][0]:>8.1f} {found['resident'][1]:>8.1f}")
    print(f"{'references to the list':<34} {found['references'][0]:>8} {found['references'][1]:>8}")
    print(f"{'most allocated in an episode, MiB':<34} {'':>8} {found['peak']:>8.2f}   the list: {found['list']:.1f}")
    print(f"{'data sets built':<34} {'':>8} {found['built']:>8}   {'over' if found['same'] else 'NOT over'} that list")


def main() -> int:
    """Runs both tables; returns 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--child", choices=[*FORMS, "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.prompts, options.path)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.jsonl")
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in strings(options.prompts)))
        medians = {}
        print(f"{options.prompts:,} prompts: seconds to the first batch of {BATCH}, median of {options.runs}")
        print(f"{'':<34} {'engine':>8} {'worst':>8} {'DataLoader':>11}")
        for form, words in FORMS.items():
            rows = [measured(form, options.prompts, path) for _ in range(options.runs)]
            engine, loader = ([row[name] for row in rows] for name in ("engine", "loader"))
            medians[form] = statistics.median(engine)
            print(
                f"{words:<34} {medians[form]:>8.3f} {max(engine):>8.3f} {statistics.median(loader):>11.3f}", flush=True
            )
        found = measured("memory", options.prompts, path)
    print_memory(found)
    wrong = [f"{FORMS[form]}: above {LIMIT_SECONDS} s" for form in ("list", "wrapped") if medians[form] > LIMIT_SECONDS]
    grown = max(found["resident"][1] - found["resident"][0], found["peak"])
    if grown > found["list"] / 2 or not found["same"] or found["built"] != 1 or len(set(found["references"])) > 1:
        wrong.append("the prompts are copied")
    for text in wrong:
        print(f"OFF: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
