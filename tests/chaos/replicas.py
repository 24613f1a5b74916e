"""Rollout replicas are killed at random moments, and the record of the run must not change.

Each run trains a small policy with three rollout replicas, a reward and a trainer with Adam on Ray; a thread beside the
driver sends SIGKILL to one replica, drawn with its moment from the seed, between the end of ``setup`` and the last
episode. Metrics without times, samples, the counters of ``result.json``, the state of the last checkpoint, and the
trained weights must be those of a run that was left alone.

    python tests/chaos/replicas.py --runs 50 --seed 0 -o table.md

One Ray serves all runs. The program ends with 1 if any record differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from chaos_modules import NUM_PROMPTS, Learner, Reward, Rollout

import chatlearn
from chatlearn import Engine, Environment, Evaluator, Trainer
from chatlearn.runtime.base import Handle

NUM_REPLICA = 3
NUM_EPISODE = 6


@dataclass
class Kill:
    """What was done to a run.

    Attributes:
        replica: of the rollout.
        delay: seconds after the end of ``setup``, or after the beginning of ``episode``.
        place: the episode and the part of it that the driver was in; empty while nothing was killed.
        module: that it is a replica of.
        episode: from 0; before it nothing is killed.
    """

    replica: int
    delay: float
    place: str = ""
    module: str = "rollout"
    episode: int | None = None


@dataclass
class Outcome:
    """What a run left behind.

    Attributes:
        record: what has to be the same in every run, by name.
        seconds: from the end of ``setup`` to the end of the last episode.
        output: what was printed.
    """

    record: dict[str, Any]
    seconds: float
    output: str


@contextmanager
def one_ray() -> Generator[None]:
    """A Ray that serves several runs."""
    from chatlearn.runtime.placement import Resources
    from chatlearn.runtime.ray import session

    session.connect(None, Resources(cpus=2 + NUM_REPLICA))
    try:
        yield
    finally:
        session.disconnect()


def make_engine(folder: Path, **runtime: Any) -> Engine:
    """An engine whose runs take a few seconds; it writes under ``folder``."""
    chatlearn.init(
        {
            "runtime_env": {"backend": "ray"},
            "models": {"rollout": {"num_replica": NUM_REPLICA, "args": {"seconds": 0.03}}, "reward": {}, "learner": {}},
            "runtime": {
                "num_episode": NUM_EPISODE,
                "sample_per_episode": 96,
                "generation_batch_size": 8,
                "train_micro_batch_size": 8,
                "train_global_batch_size": 16,
                "eval_episode_interval": 2,
                "save_episode_interval": 2,
                "output_dir": str(folder),
                "exp_name": "run",
                "sinks": ["jsonl"],
                **runtime,
            },
        }
    )
    rollout, reward, learner = Rollout("rollout"), Reward("reward"), Learner("learner")

    def experience(batch: Any) -> Any:
        sampled = rollout.forward_step(batch)
        return sampled, reward.forward_step(sampled)

    evaluator = Evaluator(lambda batch: reward.eval_step(rollout.eval_step(batch))).set_dataset(list(range(20)))
    engine = Engine(Environment(experience), Trainer(lambda batch: learner.train_step(batch)), evaluator)
    return engine.set_parameter_sync(learner, rollout).set_dataset(list(range(NUM_PROMPTS)))


def run(folder: Path, kill: Kill | None = None, **runtime: Any) -> Outcome:
    """One run, with a replica killed in it or left alone."""
    engine = make_engine(folder, **runtime)
    place = ["before the first episode"]
    started: list[float] = []
    over = threading.Event()
    for point, part in {
        "before_episode": "experience",
        "after_experience": "training",
        "after_train": "sync",
        "after_sync": "hooks",
        "after_episode": "evaluation, record and checkpoint",
        "after_save": "between episodes",
    }.items():
        engine.add_callback(point, lambda info, part=part: place.__setitem__(0, f"episode {info.episode + 1}, {part}"))
    watcher = threading.Thread(target=_beside, args=(engine, kill, place, started, over), daemon=True)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        watcher.start()
        try:
            engine.learn()
            seconds = time.monotonic() - started[0]
        finally:
            over.set()
            watcher.join()
        weights = engine.call(engine._modules["learner"].weights, {"prompt": [0]})["weights"]  # type: ignore[index]
        engine.stop()
    return Outcome(record_of(engine.run.path, weights), seconds, output.getvalue())


def _beside(engine: Engine, kill: Kill | None, place: list[str], started: list[float], over: threading.Event) -> None:
    """Waits for the end of ``setup``, and later for the moment of the kill; then kills unless the run is over."""
    while engine._deployment is None:
        if over.wait(0.005):
            return
    started.append(time.monotonic())
    while kill is not None and kill.episode is not None and not place[0].startswith(f"episode {kill.episode + 1},"):
        if over.wait(0.005):
            return
    if kill is None or over.wait(kill.delay):
        return
    cluster: Any = engine._deployment.cluster
    process = cluster.location(Handle(kill.module, kill.replica)).process
    os.kill(int(process.rpartition("/")[2]), signal.SIGKILL)
    kill.place = place[0]


def record_of(path: Path, weights: torch.Tensor) -> dict[str, Any]:
    """What a run has left in its folder, times apart, and the digest of the trained weights."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    result = json.loads((path / "result.json").read_text())
    samples = sorted((path / "samples").iterdir())
    checkpoints = sorted(each for each in (path / "checkpoints").rglob("*.safetensors") if not each.is_symlink())
    return {
        "metrics": [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines],
        "samples": {each.name: _digest(each.read_bytes()) for each in samples},
        "result": {key: value for key, value in result.items() if key != "seconds"},
        "checkpoints": {str(each.relative_to(path)): _digest(each.read_bytes()) for each in checkpoints},
        "weights": _digest(weights.contiguous().numpy().tobytes()),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(record: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two records."""
    return [name for name in record if record[name] != other[name]]


def disturbed(folder: Path, generator: random.Random, seconds: float) -> tuple[Kill, Outcome]:
    """A run in which a replica was killed; one whose moment came after its end is made again with another moment.

    Args:
        folder: to write under.
        generator: draws the replica and the moment.
        seconds: that an undisturbed run takes.
    """
    for number in range(100):
        kill = Kill(generator.randrange(NUM_REPLICA), generator.uniform(0, seconds))
        outcome = run(folder / str(number), kill)
        if kill.place:
            return kill, outcome
    raise RuntimeError(f"no moment within {seconds:.1f} s hit the run")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill rollout replicas at random moments and compare the records.")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    head = [
        f"kill -9 of one of {NUM_REPLICA} rollout replicas at a random moment, seed {options.seed}; {NUM_EPISODE} "
        "episodes a run",
        "",
        "| run | replica | after setup, s | the driver was in | replaced | run, s | record |",
        "|---:|---:|---:|---|---|---:|---|",
    ]
    print("\n".join(head), flush=True)
    rows: list[str] = []
    num_same = 0
    with tempfile.TemporaryDirectory() as name, one_ray():
        folder = Path(name)
        alone = run(folder / "alone")
        for number in range(1, options.runs + 1):
            kill, outcome = disturbed(folder / str(number), generator, alone.seconds)
            other = differences(alone.record, outcome.record)
            num_same += not other
            replaced = "yes" if f"rollout[{kill.replica}] is back" in outcome.output else "not needed any more"
            rows.append(
                f"| {number} | {kill.replica} | {kill.delay:.2f} | {kill.place} | {replaced} | {outcome.seconds:.1f} | "
                f"{'same' if not other else 'differs: ' + ', '.join(other)} |"
            )
            print(rows[-1], flush=True)
    last = f"{num_same} of {options.runs} runs end with the record of the undisturbed run ({alone.seconds:.1f} s)."
    print(f"\n{last}")
    if options.out:
        options.out.write_text("\n".join([*head, *rows, "", last, ""]), encoding="utf-8")
    return 0 if num_same == options.runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
