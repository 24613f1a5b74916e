"""Which samples were drawn in which episode follows from the metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chatlearn.config.runtime import RuntimeConfig
from chatlearn.observe.sample_log import drawn, first_episode, logged_in, read_lines


def _metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"episode": 9')


def test_refills_and_used_up_samples_count(tmp_path: Path) -> None:
    """Ten samples and rounds of four: 100 to 109, 110 to 127 (two rounds), 128 to 137."""
    runtime = RuntimeConfig(sample_per_episode=10, refill_round_size=4, consumed_samples=100)
    _metrics(tmp_path, [{"episode": 0}, {"episode": 1}, {"episode": 2, "refill/rounds": 2}, {"episode": 3}])
    assert dict(drawn(tmp_path, runtime)) == {1: range(100, 110), 2: range(110, 128), 3: range(128, 138)}
    assert first_episode(tmp_path) == 1


def test_a_run_that_began_later_is_not_counted(tmp_path: Path) -> None:
    _metrics(tmp_path, [{"episode": 4}, {"episode": 5}])
    assert list(drawn(tmp_path, RuntimeConfig())) == []
    assert first_episode(tmp_path) == 4


def test_a_run_without_metrics(tmp_path: Path) -> None:
    assert list(drawn(tmp_path, RuntimeConfig())) == []
    assert first_episode(tmp_path) == 1


def test_logged_samples_are_found_beside_torn_lines(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "episode-000002.jsonl").write_text('{"sample_id": 7, "x": 1}\n{"sample_id": 8')
    (folder / "episode-1000000.jsonl").write_text('{"sample_id": 9}\n[9]\n')
    assert [logged_in(tmp_path, sample) for sample in (7, 8, 9)] == [2, None, 1000000]
    assert read_lines(folder / "episode-000002.jsonl") == {7: {"sample_id": 7, "x": 1}}
