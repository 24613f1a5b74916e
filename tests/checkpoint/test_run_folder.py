"""Run folders are numbered and never taken twice; rows after a checkpoint move aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatlearn.checkpoint.run_folder import RunFolder, claim_run_folder, discard_rows
from chatlearn.checkpoint.store import CheckpointStore, RunState
from chatlearn.config import Config
from chatlearn.errors import CheckpointError


def _claim(output_dir: str, exp_name: str, resume: str, **others: Any) -> RunFolder:
    return claim_run_folder(
        Config(runtime=dict(others, output_dir=output_dir, exp_name=exp_name, resume=resume)).runtime
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_numbered(tmp_path: Path) -> None:
    parent = tmp_path / "deep" / "runs"
    first, second, third = (_claim(str(parent), "ppo", "never") for _ in range(3))
    assert _names(parent) == ["ppo", "ppo-2", "ppo-3"]
    assert first.path == parent / "ppo"
    assert first.note == f"This run writes to {first.path}."
    assert str(parent / "ppo") in second.note
    assert str(third.path) in third.note


def test_a_number_that_is_free_is_used(tmp_path: Path) -> None:
    for name in ("ppo", "ppo-3"):
        (tmp_path / name).mkdir()
    assert _claim(str(tmp_path), "ppo", "never").path == tmp_path / "ppo-2"


def test_a_file_of_that_name_is_no_folder_to_write_into(tmp_path: Path) -> None:
    (tmp_path / "ppo").write_text("mine")
    assert _claim(str(tmp_path), "ppo", "never").path == tmp_path / "ppo-2"
    assert (tmp_path / "ppo").read_text() == "mine"


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _claim("runs", "ppo", "never").path == tmp_path / "runs" / "ppo"
    _run(tmp_path / "runs" / "old")
    assert _claim("runs", "ppo", "runs/old").path == tmp_path / "runs" / "old"


def _run(path: Path, checkpoint: int | None = None, status: str | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("runtime: {}\n")
    if checkpoint:
        with CheckpointStore(path / "checkpoints").write(RunState(episode=checkpoint), {}):
            pass
    if status:
        (path / "result.json").write_text(json.dumps({"status": status}))
    return path


def test_auto_goes_by_number_not_by_text_or_age(tmp_path: Path) -> None:
    for name in ("ppo-10", "ppo-9", "ppo", "ppo-old", "myppo-11"):
        _run(tmp_path / name, checkpoint=1)
    found = _claim(str(tmp_path), "ppo", "auto")
    assert found.path == tmp_path / "ppo-10"
    assert found.checkpoint == tmp_path / "ppo-10" / "checkpoints" / "episode-000001"


@pytest.mark.parametrize("name", ["a.b", "a+b", "(x)", "a[1]"])
def test_names_are_no_patterns(name: str, tmp_path: Path) -> None:
    (tmp_path / "axb").mkdir()
    path = _run(tmp_path / name, checkpoint=2)
    assert _claim(str(tmp_path), name, "auto").path == path


@pytest.mark.parametrize("status", ["interrupted", "failed", "running", None])
def test_an_unfinished_run_goes_on(status: str | None, tmp_path: Path) -> None:
    path = _run(tmp_path / "ppo", checkpoint=4, status=status)
    for resume in ("auto", str(path)):
        found = _claim(str(tmp_path), "ppo", resume)
        assert not found.finished
        assert found.checkpoint == path / "checkpoints" / "episode-000004"
        assert str(found.checkpoint) in found.note


def test_a_finished_run_is_finished(tmp_path: Path) -> None:
    path = _run(tmp_path / "ppo", checkpoint=4, status="finished")
    for resume in ("auto", str(path)):
        found = _claim(str(tmp_path), "ppo", resume)
        assert found.finished
        assert f"{path} is finished" in found.note
    # but one of its checkpoints can be gone on from
    assert not _claim(str(tmp_path), "ppo", str(path / "checkpoints" / "episode-000004")).finished


def test_a_checkpoint_belongs_to_its_run(tmp_path: Path) -> None:
    path = _run(tmp_path / "ppo", checkpoint=4)
    found = _claim(str(tmp_path / "elsewhere"), "other", str(path / "checkpoints" / "episode-000004"))
    assert (found.path, found.checkpoint) == (path, path / "checkpoints" / "episode-000004")
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"runtime\.resume: .*nothing is neither a run folder nor a checkpoint"):
        _claim(str(tmp_path), "ppo", str(tmp_path / "nothing"))


def test_a_folder_that_is_no_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(CheckpointError, match="photos is neither a run folder nor a checkpoint"):
        _claim(str(tmp_path), "ppo", str(tmp_path / "photos"))


def _write_rows(path: Path, *episodes: int, end: str = "") -> None:
    path.write_text("".join(json.dumps({"episode": e, "x": "\u2028"}) + "\n" for e in episodes) + end)


def _episodes(path: Path) -> list[int]:
    return [json.loads(line)["episode"] for line in path.read_text().split("\n") if line]


def test_later_rows_move_aside(tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    _write_rows(rows, 1, 2, 3, 4)
    discard_rows(rows, 2)
    assert _episodes(rows) == [1, 2]
    assert _episodes(tmp_path / "metrics.discarded.jsonl") == [3, 4]
    _write_rows(rows, 1, 2, 3)
    discard_rows(rows, 2)
    assert _episodes(tmp_path / "metrics.discarded.jsonl") == [3, 4, 3]


@pytest.mark.parametrize("torn", ['{"episode": 3, "loss": 0.', '{"episode": 3', "{", "\0\0\0", "7"])
def test_a_torn_last_line_moves_aside(torn: str, tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    _write_rows(rows, 1, 2, end=torn)
    discard_rows(rows, 5)
    assert _episodes(rows) == [1, 2]
    assert rows.read_text().endswith("\n")
    assert (tmp_path / "metrics.discarded.jsonl").read_text() == torn + "\n"


def test_a_last_line_that_lost_its_end_of_line_stays(tmp_path: Path) -> None:
    """Else the next row would be written onto it."""
    rows = tmp_path / "metrics.jsonl"
    _write_rows(rows, 1, end='{"episode": 2}')
    discard_rows(rows, 2)
    with rows.open("a") as file:
        file.write('{"episode": 3}\n')
    assert _episodes(rows) == [1, 2, 3]


def test_nothing_to_move(tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    discard_rows(rows, 0)
    assert _names(tmp_path) == []
    _write_rows(rows, 1, 2)
    before = rows.stat().st_mtime_ns
    discard_rows(rows, 2)
    assert _names(tmp_path) == ["metrics.jsonl"]
    assert rows.stat().st_mtime_ns == before
