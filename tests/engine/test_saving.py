"""When checkpoints are written, from a snapshot or at once, and what a resumed run may change."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toys

import chatlearn
from chatlearn import CheckpointError, Engine
from chatlearn.checkpoint import disk
from chatlearn.checkpoint.store import CheckpointStore, read_run_state
from chatlearn.checkpoint.verify import verify
from chatlearn.engine import checkpoints
from chatlearn.engine.engine import Interrupted


def _engine(folder: Path, **runtime: Any) -> Engine:
    chatlearn.init(toys.settings(folder, **runtime))
    return toys.make_engine()


def _learned(folder: Path, **runtime: Any) -> Path:
    engine = _engine(folder, **runtime)
    engine.learn()
    return engine.run.path


def _interrupted(folder: Path, iteration: int, **runtime: Any) -> None:
    toys.INTERRUPT["learner"] = iteration
    with pytest.raises(Interrupted):
        _learned(folder, **runtime)
    toys.INTERRUPT.clear()


def _files(run: Path) -> dict[str, bytes]:
    """Of all checkpoints, but for where the run lies and how it was to be saved."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted((run / "checkpoints").rglob("*"))
        if path.is_file() and path.name not in ("run.json", "manifest.json")
    }


def test_a_checkpoint_from_a_snapshot_is_the_one_that_is_written_at_once(tmp_path: Path) -> None:
    runtime = {"num_episode": 4, "save_episode_interval": 1}
    at_once = _learned(tmp_path / "at_once", **runtime)
    snapshot = _learned(tmp_path / "snapshot", **runtime, async_save=True)
    assert _files(snapshot) == _files(at_once)
    assert len(CheckpointStore(snapshot / "checkpoints").all()) == 4
    assert [verify(path) for path in CheckpointStore(snapshot / "checkpoints").all()] == [[]] * 4
    assert toys.rows_of(snapshot) == toys.rows_of(at_once)


def test_training_goes_on_while_a_snapshot_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes nothing until the next episode has trained; then the checkpoint holds what was before it."""
    has_trained, trained = threading.Event(), []
    write = disk.os.write
    whole = _learned(tmp_path / "whole", num_episode=3, save_episode_interval=1)

    def waiting(file: int, data: Any) -> int:
        if threading.current_thread() is not threading.main_thread():
            assert has_trained.wait(30)
        return write(file, data)

    monkeypatch.setattr(disk.os, "write", waiting)
    engine = _engine(tmp_path / "run", num_episode=3, save_episode_interval=2, async_save=True)
    store = CheckpointStore(tmp_path / "run" / "toy" / "checkpoints")

    def after_train(info: Any) -> None:
        trained.append((info.episode, store.all()))
        if len(trained) == 3:
            has_trained.set()

    engine.add_callback("after_train", after_train).learn()
    assert [found for _, found in trained] == [[], [], []]
    (saved,) = store.all()
    same = _files(whole)
    for name in ("learner.state.json", "learner.state.rank0.safetensors"):
        assert (saved / name).read_bytes() == same[f"checkpoints/episode-000002/{name}"]


def test_a_snapshot_that_cannot_be_written_ends_the_run_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(tmp_path, iteration=4, num_episode=4, save_episode_interval=1)
    store = CheckpointStore(tmp_path / "toy" / "checkpoints")
    before = store.all()
    write = disk.os.write

    def full(file: int, data: Any) -> int:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(disk.os, "write", full)
    with pytest.raises(CheckpointError, match=r"learner\.state.*the disk is full"):
        _learned(tmp_path, num_episode=4, save_episode_interval=1, async_save=True, resume="auto")
    monkeypatch.setattr(disk.os, "write", write)
    assert store.all() == before
    assert [verify(path) for path in before] == [[]] * len(before)
    assert [path.name for path in store.all()[0].parent.glob(".*")] == []
    _learned(tmp_path, num_episode=4, save_episode_interval=1, resume="auto")
    whole = _learned(tmp_path, num_episode=4, save_episode_interval=1, exp_name="whole")
    assert toys.rows_of(tmp_path / "toy") == toys.rows_of(whole)


def test_an_interrupted_run_keeps_the_snapshot_that_was_on_its_way(tmp_path: Path) -> None:
    _interrupted(tmp_path, iteration=7, num_episode=4, save_episode_interval=2, async_save=True)
    (saved,) = CheckpointStore(tmp_path / "toy" / "checkpoints").all()
    assert saved.name == "episode-000002"
    assert verify(saved) == []


def test_minutes_since_the_last_checkpoint_make_one_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode takes 25 seconds."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(checkpoints, "time", clock)
    engine = _engine(tmp_path, num_episode=6, save_minutes_interval=1)
    engine.add_callback("before_episode", lambda info: setattr(clock, "now", clock.now + 25)).learn()
    saved = [path.name for path in CheckpointStore(tmp_path / "toy" / "checkpoints").all()]
    assert saved == ["episode-000003", "episode-000006"]


def test_a_change_that_is_allowed_is_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _interrupted(tmp_path, iteration=4, num_episode=4, save_episode_interval=1)
    changed = {"num_episode": 4, "save_episode_interval": 1, "resume": "auto", "data_shuffle": False}
    with pytest.raises(CheckpointError, match=r"data_shuffle was True and is False\n.*--allow-change runtime\.data_sh"):
        _learned(tmp_path, **changed)
    capsys.readouterr()
    run = _learned(tmp_path, **changed, allow_change=["runtime.data_shuffle"])
    told = "note: runtime.data_shuffle was True and is False, which runtime.allow_change allows"
    assert told in capsys.readouterr().out
    latest = CheckpointStore(run / "checkpoints").latest()
    assert latest is not None
    change = {"episode": 1, "key": "runtime.data_shuffle", "was": True, "now": False}
    assert read_run_state(latest)[1]["changes"] == [change]


def test_another_data_set_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    _interrupted(tmp_path, iteration=4, num_episode=4, save_episode_interval=1)
    runtime = {"num_episode": 4, "save_episode_interval": 1, "resume": "auto"}
    engine = _engine(tmp_path, **runtime).set_dataset(list(range(49)))
    before = _files(tmp_path / "toy")
    with pytest.raises(CheckpointError, match=r"datasets\.train was '50:[0-9a-f]{16}' and is '49:[0-9a-f]{16}'"):
        engine.learn()
    assert _files(tmp_path / "toy") == before
    _engine(tmp_path, **runtime, allow_change=["datasets.train"]).set_dataset(list(range(49))).learn()
    assert json.loads((tmp_path / "toy" / "result.json").read_text())["status"] == "finished"


def test_another_class_of_a_module_with_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(toys.Toy):
        setup, train_step = toys.Learner.setup, toys.Learner.train_step

    _interrupted(tmp_path, iteration=4, num_episode=4, save_episode_interval=1)
    monkeypatch.setattr(toys, "Learner", Another)
    engine = _engine(tmp_path, num_episode=4, resume="auto")
    with pytest.raises(CheckpointError, match=r"classes\.learner was 'toys:Learner' and is '.*Another'"):
        engine.learn()


def test_a_damaged_checkpoint_is_refused_and_the_one_that_works_is_offered(tmp_path: Path) -> None:
    _interrupted(tmp_path, iteration=7, num_episode=4, save_episode_interval=1)
    store = CheckpointStore(tmp_path / "toy" / "checkpoints")
    older, newest = store.all()[-2:]
    tensors = newest / "learner.state.rank0.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-3] ^= 4
    tensors.write_bytes(data)
    words = rf"{tensors} is damaged.*\nThe newest checkpoint that works: runtime\.resume={older}"
    with pytest.raises(CheckpointError, match=words):
        _learned(tmp_path, num_episode=4, save_episode_interval=1, resume="auto")
    assert tensors.read_bytes() == data
    run = _learned(tmp_path, num_episode=4, save_episode_interval=1, resume=str(older))
    whole = _learned(tmp_path, num_episode=4, save_episode_interval=1, exp_name="whole")
    assert toys.rows_of(run) == toys.rows_of(whole)
    assert _files(run) == _files(whole)


def test_all_files_of_a_checkpoint_are_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that is there when the folder is renamed was forced to the disk since it was written."""
    synced: set[tuple[int, int]] = set()
    unsynced: list[str] = []
    fsync, rename = os.fsync, os.rename

    def syncing(file: int) -> None:
        fsync(file)
        status = os.fstat(file)
        synced.add((status.st_dev, status.st_ino))

    def renaming(source: Any, target: Any) -> None:
        if Path(source).name.startswith(".episode-"):
            inner = [path.stat() for path in [Path(source), *Path(source).rglob("*")]]
            unsynced.extend(str(status) for status in inner if (status.st_dev, status.st_ino) not in synced)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    run = _learned(tmp_path, save_episode_interval=1)
    assert len(CheckpointStore(run / "checkpoints").all()) == 2
    assert unsynced == []
