"""Every sink takes rows of metrics; what it wrote is read back by a reader that is not ours."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chatlearn.observe.sinks import JsonlSink, TensorBoardSink, open_sinks

ROWS = {1: {"a/loss": 0.1, "num_samples": 20}, 2: {"a/loss": 1 / 3, "num_samples": 40}}


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(scalar.step, scalar.value) for scalar in reader.Scalars(name)]


def test_jsonl_is_complete_after_each_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for episode, row in ROWS.items():
        sink.write(episode, row)
        lines = path.read_text().splitlines()  # while the sink is open
        assert json.loads(lines[-1]) == {"episode": episode, **row}  # floats to the last bit
        assert len(lines) == episode
    sink.close()
    again = JsonlSink(path)
    again.write(3, {"a/loss": math.inf})
    again.close()
    assert [json.loads(line)["episode"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_tensorboard_events(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, 1)
    for episode, row in ROWS.items():
        sink.write(episode, {**row, "text": "left out"})
    sink.close()
    assert _scalars(tmp_path, "a/loss") == [(1, pytest.approx(0.1)), (2, pytest.approx(1 / 3))]
    assert _scalars(tmp_path, "num_samples") == [(1, 20), (2, 40)]


@pytest.mark.parametrize("first", [1, 3])
def test_tensorboard_forgets_what_a_resume_replaces(first: int, tmp_path: Path) -> None:
    for start, value in ((1, 1.0), (first, 2.0)):
        sink = TensorBoardSink(tmp_path, start)
        for episode in range(start, 5):
            sink.write(episode, {"x": value})
        sink.close()
    assert _scalars(tmp_path, "x") == [(e, 1.0 if e < first else 2.0) for e in range(1, 5)]


def test_the_sinks_of_a_run(tmp_path: Path) -> None:
    sinks = open_sinks(tmp_path, 1)
    for sink in sinks:
        sink.write(1, ROWS[1])
        sink.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["a/loss"] == 0.1
    assert _scalars(tmp_path / "tensorboard", "a/loss") == [(1, pytest.approx(0.1))]
