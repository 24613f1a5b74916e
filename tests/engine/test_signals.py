"""Ctrl-C and SIGTERM end a real process: exit code, one line on how to go on, files closed; the run goes on exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

import chatlearn
from chatlearn.checkpoint.store import CheckpointStore

TESTS = Path(toys.__file__).parent

PROGRAM = """\
import time
import chatlearn
import toys

class Waiting(toys.Policy):
    def forward_step(self, data, iteration=0):
        if iteration == 7:
            print("waiting", flush=True)
            time.sleep(60)
        return super().forward_step(data, iteration)

chatlearn.init()
toys.make_engine(Waiting).learn()
print("learned")
"""


@pytest.mark.parametrize(
    ("number", "code", "launcher"),
    [
        (signal.SIGINT, 130, []),
        (signal.SIGINT, 130, ["-m", "chatlearn", "run"]),
        (signal.SIGTERM, 143, []),
    ],
    ids=["Ctrl-C", "Ctrl-C under chatlearn run", "SIGTERM"],
)
def test_a_signal_in_the_middle_of_an_episode(number: int, code: int, launcher: list[str], tmp_path: Path) -> None:
    """Iteration 7 is the second batch of the third episode (three batches each)."""
    (tmp_path / "program.py").write_text(PROGRAM)
    config = toys.settings(tmp_path / "runs", num_episode=4, save_episode_interval=2, sigterm_seconds=1)
    (tmp_path / "toy.yaml").write_text(json.dumps(config))
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *launcher, "program.py", "-c", "toy.yaml"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    process.send_signal(number)
    output = process.stdout.read()
    assert process.wait(timeout=30) == code
    run = tmp_path / "runs" / "toy"
    assert output.count(f"runtime.resume={run}") == 1
    assert "Traceback" not in output
    assert "learned" not in output
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
    assert [row["episode"] for row in toys.rows_of(run)] == [1, 2]
    assert list(run.rglob("*.partial")) == []

    rows = {}
    for name, resume in {"resumed": str(run), "whole": "never"}.items():
        config = toys.settings(tmp_path / "runs", num_episode=4, resume=resume, exp_name=name)
        chatlearn.init(config)
        engine = toys.make_engine()
        engine.learn()
        rows[name] = toys.rows_of(engine.run.path), toys.weights_of(engine, "learner").tolist()
    assert rows["resumed"] == rows["whole"]


PATIENT = PROGRAM.replace("time.sleep(60)", "time.sleep(1.5)")


@pytest.mark.parametrize("storm", [1, 2], ids=["one", "two in a row"])
def test_sigterm_saves_the_episode_at_hand_and_a_second_one_does_not_wait(storm: int, tmp_path: Path) -> None:
    """Nothing else would save: the interval is longer than the run."""
    (tmp_path / "program.py").write_text(PATIENT)
    config = toys.settings(tmp_path / "runs", num_episode=5, save_episode_interval=100, sigterm_seconds=60)
    (tmp_path / "toy.yaml").write_text(json.dumps(config))
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "program.py", "-c", "toy.yaml"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    for _ in range(storm):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    output = process.stdout.read()
    assert process.wait(timeout=30) == 143
    assert "learned" not in output
    run = tmp_path / "runs" / "toy"
    complete = 3 if storm == 1 else 2
    assert f"Run interrupted after {complete} complete episodes. Go on with: runtime.resume={run}" in output
    saved = [path.name for path in CheckpointStore(run / "checkpoints").all()]
    assert saved == (["episode-000003"] if storm == 1 else [])
    rows = {}
    for name, resume in {"resumed": str(run), "whole": "never"}.items():
        chatlearn.init(toys.settings(tmp_path / "runs", num_episode=5, resume=resume, exp_name=name))
        engine = toys.make_engine()
        engine.learn()
        rows[name] = toys.rows_of(engine.run.path), toys.weights_of(engine, "learner").tolist()
    assert rows["resumed"] == rows["whole"]
