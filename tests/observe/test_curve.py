"""The picture of a run: it exists and grows with what there is to show. What it looks like is for people."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from chatlearn.observe.curve import draw_learning_curve


def _metrics(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"episode": i + 1, **row}) + "\n" for i, row in enumerate(rows)))
    return path


def _size(picture: Path) -> tuple[int, int]:
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[12:16] == b"IHDR"
    return struct.unpack(">II", data[16:24])


def test_one_panel_for_each_headline_that_there_is(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    rows = [{"reward/reward": 0.1}, {"reward/reward": 0.2, "eval/reward/reward": 0.3}]
    assert draw_learning_curve(_metrics(tmp_path, *rows), one, "run") is None
    rows = [{**row, "reward/accuracy": 0.5} for row in rows]
    marks = {"held-out, start": (0, 0.4)}
    assert draw_learning_curve(_metrics(tmp_path, *rows), two, "run", marks) is None
    assert _size(two)[0] == pytest.approx(2 * _size(one)[0], abs=2)


@pytest.mark.parametrize("rows", [[], [{"num_samples": 3}], [{"a/lossy": 1.0}]])
def test_nothing_to_draw_is_said(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    reason = draw_learning_curve(_metrics(tmp_path, *rows), picture, "run")
    assert reason is not None
    assert "reward, accuracy, kl, loss" in reason
    assert not picture.exists()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatlearn.observe.curve.find_spec", lambda name: None)
    reason = draw_learning_curve(_metrics(tmp_path, {"a/loss": 1.0}), tmp_path / "curve.png", "run")
    assert reason is not None
    assert "chatlearn[demo]" in reason


def test_a_run_draws_its_curve(tmp_path: Path) -> None:
    import toys

    import chatlearn

    chatlearn.init(toys.settings(tmp_path, num_episode=1))
    toys.make_engine(evaluate=False).learn()
    assert _size(tmp_path / "toy" / "learning_curve.png")[1] > 100
