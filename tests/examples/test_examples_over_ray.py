"""The documents' programs, run as a user would, give the same bits on Ray as in one process.

In every layout of one process they do so too: test_layouts.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from programs import EXAMPLES, PROGRAMS, read_rows

SIZES = [
    "runtime.num_episode=2",
    "runtime.sample_per_episode=60",
    "runtime.num_training_epoch=2",
    "runtime.generation_batch_size=16",
    "models.reference.generation_batch_size=7",
    "runtime.train_global_batch_size=24",
    "runtime.train_micro_batch_size=8",
    "runtime.eval_episode_interval=1",
    "runtime.save_episode_interval=2",
]
"""A short run in which nothing divides anything."""

LAYOUTS = [
    ("main", [], "fixed"),
    ("main", ["policy", "reward"], "dynamic"),
    ("direct_engine", ["reference", "value"], "fixed"),
    ("custom_engine", ["reference"], "dynamic"),
    ("with_evaluator", ["reference"], "fixed"),
]
"""Program, models with three replicas, loader; a worker takes a second or two to start, so not every one of each."""


class Record(NamedTuple):
    """What must not depend on where modules live.

    Attributes:
        metrics: the rows of ``metrics.jsonl``, times apart.
        samples: what was written under ``samples/``.
        weights: SHA-256 of each file of tensors in the last checkpoint.
    """

    metrics: list[dict[str, Any]]
    samples: dict[str, str]
    weights: dict[str, str]


def record_of(folder: Path, program: str, name: str, *overrides: str) -> Record:
    """Runs a program in a copy of its folder under ``folder``."""
    example, config = PROGRAMS[program]
    place = folder / example
    if not place.exists():
        shutil.copytree(EXAMPLES / example, place, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    settings = [*SIZES, f"runtime.exp_name={name}", *overrides]
    done = subprocess.run(
        [sys.executable, f"{program}.py", "-c", config, *settings],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = place / "runs" / name
    rows = read_rows(run / "metrics.jsonl")
    return Record(
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows],
        {path.name: path.read_text(encoding="utf-8") for path in (run / "samples").iterdir()},
        {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (run / "checkpoints" / "episode-000002").glob("*.safetensors")
        },
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Each program in one process."""
    return {program: record_of(tmp_path_factory.mktemp("plain"), program, "plain") for program in PROGRAMS}


@pytest.mark.parametrize(("program", "several", "loader"), LAYOUTS)
def test_a_program_gives_the_same_bits_on_ray(
    program: str, several: list[str], loader: str, plain: dict[str, Record], tmp_path: Path
) -> None:
    replicas = [f"models.{name}.num_replica=3" for name in several]
    layout = ["runtime_env.backend=ray", f"runtime.stream_data_loader_type={loader}", *replicas]
    found = record_of(tmp_path, program, "on_ray", *layout)
    assert found.metrics == plain[program].metrics
    assert found.samples == plain[program].samples
    assert found.weights == plain[program].weights


def test_the_records_are_those_of_runs_that_train(plain: dict[str, Record]) -> None:
    """Otherwise equal records would say little."""
    for record in plain.values():
        assert record.weights
        assert len(record.samples) == 2
        first, last = record.metrics[0], record.metrics[-1]
        losses = [key for key in first if key.endswith("/loss")]
        assert losses
        assert all(first[key] != last[key] for key in losses)
