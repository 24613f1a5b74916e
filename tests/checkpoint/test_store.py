"""Checkpoints are complete or absent; ``latest`` points to a complete one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chatlearn import CheckpointError
from chatlearn.checkpoint.store import CheckpointStore, RunState, read_run_state

STATE = RunState(
    episode=3, position=60, generation_batches={"policy": 9}, global_batches=12, weight_version=4
)  # fmt: skip


def _write(store: CheckpointStore, episode: int, **files: str) -> None:
    with store.write(RunState(episode=episode), {}) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def test_counters_come_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.write(STATE, {"modules": ["policy"]}):
        pass
    latest = store.latest()
    assert latest == tmp_path / "episode-000003"
    assert read_run_state(latest)[0] == STATE
    assert read_run_state(latest)[1]["modules"] == ["policy"]


def test_the_newest_complete_checkpoint_is_the_latest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.latest() is None
    for episode in (9, 10, 11):
        _write(store, episode)
        assert store.latest() == tmp_path / "checkpoints" / f"episode-{episode:06d}"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_no_trace(error: BaseException, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _write(store, 1, weights="good")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(episode: int) -> None:
        with store.write(RunState(episode=episode), {}) as folder:
            (folder / "weights").write_text("half")
            raise error

    for episode in (1, 2):
        with pytest.raises(type(error)):
            fail(episode)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert store.latest() == tmp_path / "episode-000001"


def test_a_checkpoint_is_invisible_until_it_is_complete(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.write(RunState(episode=1), {}) as folder:
        assert store.latest() is None
        assert folder.name.startswith(".")
    assert store.latest() is not None


def test_leftovers_of_a_killed_write_do_no_harm(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _write(store, 1)
    aside = tmp_path / ".episode-000002.partial"
    aside.mkdir()
    (aside / "stale").write_text("from before")
    assert store.latest() == tmp_path / "episode-000001"
    _write(store, 2)
    assert store.latest() == tmp_path / "episode-000002"
    assert not (tmp_path / "episode-000002" / "stale").exists()
    assert not aside.exists()


@pytest.mark.parametrize("pointer", [None, "", "episode-000009\n", "../elsewhere"])
def test_a_lost_pointer_falls_back_to_the_newest_complete(pointer: str | None, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    _write(store, 1)
    _write(store, 2)
    (tmp_path / "checkpoints" / ".episode-000003.partial").mkdir()
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink()
    if pointer is not None:
        latest.write_text(pointer)
    assert store.latest() == tmp_path / "checkpoints" / "episode-000002"
    told = f"note: {latest} names {(pointer or '').strip()!r}, which is not there any more; the newest that is left is "
    assert store.loss() == (f"{told}episode-000002." if pointer else "")


def test_a_checkpoint_of_the_same_episode_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _write(store, 1, weights="old", only_old="x")
    _write(store, 1, weights="new")
    assert (tmp_path / "episode-000001" / "weights").read_text() == "new"
    assert not (tmp_path / "episode-000001" / "only_old").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": 99, "state": {}}))
    with pytest.raises(CheckpointError, match="format 99, of a newer or foreign version; this version reads format 2"):
        read_run_state(tmp_path)


def _damage(checkpoint: Path) -> None:
    (checkpoint / "weights").write_text("other")


def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(tmp_path: Path) -> None:
    """Between two renames there is only the old one, under the name that it was put aside by."""
    store = CheckpointStore(tmp_path)
    _write(store, 1, weights="old")
    aside = (tmp_path / "episode-000001").rename(tmp_path / ".episode-000001.replaced")
    (tmp_path / ".episode-000001.partial").mkdir()
    assert store.latest() == aside
    assert store.all() == [aside]
    store.recover()
    assert store.latest() == tmp_path / "episode-000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode-000001", "latest"]
    assert (tmp_path / "episode-000001" / "weights").read_text() == "old"


def test_what_was_replaced_is_removed_where_the_new_one_is_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _write(store, 1, weights="new")
    shutil.copytree(tmp_path / "episode-000001", tmp_path / ".episode-000001.replaced")
    store.recover()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode-000001", "latest"]


def test_the_newest_that_works_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for episode in (1, 2, 3):
        _write(store, episode, weights="good!")
    _damage(tmp_path / "episode-000003")
    assert store.working() == tmp_path / "episode-000002"
    assert store.working(besides=tmp_path / "episode-000002") == tmp_path / "episode-000001"


def test_the_only_good_one_is_not_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for episode in (1, 2, 3):
        _write(store, episode, weights="good!")
    store.mark_best(3)
    store.remove(tmp_path / "episode-000003")
    assert (store.latest(), store.best()) == (tmp_path / "episode-000002", None)
    _damage(tmp_path / "episode-000001")
    with pytest.raises(CheckpointError, match="is the only checkpoint of the run without damage; it is kept"):
        store.remove(tmp_path / "episode-000002")
    store.remove(tmp_path / "episode-000001")
    assert store.all() == [tmp_path / "episode-000002"]


def test_pruning_spares_the_best_and_the_one_that_was_written_last(tmp_path: Path) -> None:
    """The last one may have a lower number than others, where a run went on from an older checkpoint."""
    store = CheckpointStore(tmp_path)
    for episode in (1, 2, 3, 4, 5):
        _write(store, episode)
    store.mark_best(1)
    store.point_to("episode-000002")
    store.prune(2)
    assert [path.name for path in store.all()] == [f"episode-00000{n}" for n in (1, 2, 4, 5)]
