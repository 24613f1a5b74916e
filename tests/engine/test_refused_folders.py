"""Folders that can't be made, read or written are told before anything starts, with the key that names them."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import toys

import chatlearn
from chatlearn import ConfigError


def _refused(folder: Path, **runtime: Any) -> str:
    chatlearn.init(toys.settings(folder, **runtime))
    toys.EVENTS.clear()
    with pytest.raises(ConfigError) as caught:
        toys.make_engine().learn()
    assert toys.EVENTS == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "others", "path"),
    [
        ("output_dir", {}, "file"),
        ("output_dir", {}, "file/below"),
        ("output_dir", {}, "x" * 300),
        ("data_checkpoint_path", {"save_episode_interval": 1}, "file"),
        ("data_checkpoint_path", {}, "file/below"),
        ("profiler_dir", {"profile_episodes": [2]}, "file"),
        ("profiler_dir", {"profile_episodes": [2]}, "file/below"),
    ],
)
def test_a_path_that_can_be_no_folder(key: str, others: dict[str, Any], path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    text = _refused(tmp_path / "runs", **{**others, key: str(tmp_path / path)})
    assert text.startswith(f"runtime.{key}: ")
    assert "can't be written as a folder" in text
    assert "Set it to a folder that this user may write" in text
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_the_profiler_that_no_episode_needs_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    chatlearn.init(toys.settings(tmp_path, num_episode=1, profiler_dir=str(tmp_path / "file")))
    toys.make_engine().learn()
    assert (tmp_path / "toy" / "result.json").exists()


def test_a_name_that_is_too_long_for_a_folder(tmp_path: Path) -> None:
    text = _refused(tmp_path, exp_name="x" * 300)
    assert text.startswith("runtime.exp_name: no folder can be called 'xxx")
    assert "(300 characters)" in text
    assert "Choose a shorter name" in text
    assert len(text) < 400


def test_a_path_to_resume_that_is_too_long(tmp_path: Path) -> None:
    text = _refused(tmp_path, resume=str(tmp_path / ("x" * 300)))
    assert text.startswith("runtime.resume: what there is to go on from can't be read: File name too long")
    assert "runtime.resume=never" in text


def test_checkpoints_of_a_run_that_are_no_folder(tmp_path: Path) -> None:
    run = tmp_path / "elsewhere" / "old"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    (run / "checkpoints").write_text("no folder")
    assert _refused(tmp_path, resume=str(run)).startswith(f"runtime.resume: {run / 'checkpoints'} can't be written")


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("output_dir", {"exp_name": "old"}),
        ("output_dir", {"exp_name": "old", "resume": "auto"}),
        ("resume", {"resume": "{0}/there/old", "output_dir": "{0}/elsewhere"}),
        ("data_checkpoint_path", {"data_checkpoint_path": "{0}/saved"}),
    ],
)
def test_a_folder_that_this_user_may_not_write(
    key: str, others: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may write anywhere, perhaps; so the system's refusal is played."""
    run = tmp_path / "there" / "old"
    (tmp_path / "saved").mkdir()
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    make = tempfile.TemporaryFile

    def refusing(dir: Path) -> Any:
        if dir.is_relative_to(tmp_path / "there") or dir.is_relative_to(tmp_path / "saved"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    given = {name: value.format(tmp_path) for name, value in others.items()}
    text = _refused(tmp_path, **{"output_dir": str(tmp_path / "there"), **given})
    assert text.startswith(f"runtime.{key}: ")
    assert "Read-only file system" in text
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml"]


def test_what_is_looked_at_is_left_as_it_was(tmp_path: Path) -> None:
    """Whether a folder can be written is found out without a trace."""
    saved, profiles = tmp_path / "saved", tmp_path / "profiles"
    chatlearn.init(
        toys.settings(
            tmp_path,
            num_episode=1,
            data_checkpoint_path=str(saved),
            profiler_dir=str(profiles),
            profile_episodes=[7],
        )
    )
    toys.make_engine().learn()
    assert list(saved.iterdir()) == list(profiles.iterdir()) == []
