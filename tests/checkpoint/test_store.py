"""Checkpoints are complete or absent; ``latest`` points to a complete one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chatlearn import BaseModule, CheckpointError
from chatlearn.checkpoint.store import (
    CheckpointStore,
    RunState,
    load_module,
    read_run_state,
    remember_setup,
    save_module,
)

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
    (tmp_path / "checkpoints" / "episode-000003").mkdir()  # incomplete: no run.json
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink()
    if pointer is not None:
        latest.write_text(pointer)
    assert store.latest() == tmp_path / "checkpoints" / "episode-000002"


def test_a_checkpoint_of_the_same_episode_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    _write(store, 1, weights="old", only_old="x")
    _write(store, 1, weights="new")
    assert (tmp_path / "episode-000001" / "weights").read_text() == "new"
    assert not (tmp_path / "episode-000001" / "only_old").exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": 99, "state": {}}))
    with pytest.raises(CheckpointError, match="format 99; this version reads format 1"):
        read_run_state(tmp_path)


class Counter:
    """State in whatever form the test asks for."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value() if callable(self.value) else self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Frozen(BaseModule):
    """A module with a model and one more piece of state."""

    def __init__(self, name: str, value: Any = 1.0) -> None:
        super().__init__(name)
        self.model, self.counter = torch.nn.Linear(2, 2), Counter(value)


def _saved(module: BaseModule, folder: Path, trained: bool = False, synced: bool = False) -> bool:
    return save_module(module, str(folder), 1, trained, synced)


def test_a_state_that_never_changes_is_not_saved(tmp_path: Path) -> None:
    module = Frozen("reference")
    remember_setup(module, False)
    module.model(torch.ones(1, 2)).sum().backward()
    assert not _saved(module, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_trained_module_is_always_saved(tmp_path: Path) -> None:
    module = Frozen("trainer")
    remember_setup(module, False)
    assert _saved(module, tmp_path, trained=True)


def _in_place(module: Frozen) -> None:
    with torch.no_grad():
        module.model.weight[0, 0] += 1


def _replaced(module: Frozen) -> None:
    module.model.weight.data = module.model.weight.data + 1


def _other_model(module: Frozen) -> None:
    module.model = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("change", [_in_place, _replaced, _other_model])
def test_a_changed_model_is_saved(change: Any, tmp_path: Path) -> None:
    module = Frozen("reference")
    remember_setup(module, False)
    change(module)
    assert _saved(module, tmp_path)
    other = Frozen("reference")
    load_module(other, str(tmp_path), 1)
    assert other.model.weight.equal(module.model.weight)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1.0, 1.5),
        ("a", "b"),
        ([1, 2], [1, 3]),
        ({"a": 1}, {"a": 1, "b": 2}),
        (lambda: torch.tensor(1.0), lambda: torch.tensor(1.5)),  # made anew by each state_dict()
        (np.zeros(5000), np.pad([1.0], (2500, 2499))),  # differs where a printed array is cut
    ],
    ids=["number", "text", "list", "dict", "fresh tensor", "long array"],
)
def test_any_other_change_of_state_is_saved(before: Any, after: Any, tmp_path: Path) -> None:
    module = Frozen("controlled", before)
    remember_setup(module, False)
    module.counter.value = after
    assert _saved(module, tmp_path)
    other = Frozen("controlled")
    load_module(other, str(tmp_path), 1)
    wanted = module.counter.state_dict()["value"]
    assert (
        np.array_equal(other.counter.value, wanted) if not isinstance(wanted, dict) else other.counter.value == wanted
    )


def test_a_synced_model_is_left_to_the_sync(tmp_path: Path) -> None:
    module = Frozen("policy")
    remember_setup(module, True)
    _in_place(module)
    assert not _saved(module, tmp_path, synced=True)
    module.counter.value = 2.0
    assert _saved(module, tmp_path, synced=True)
    other = Frozen("policy")
    load_module(other, str(tmp_path), 1)
    assert other.counter.value == 2.0
    assert not other.model.weight.equal(module.model.weight)


def test_a_module_may_be_called_run(tmp_path: Path) -> None:
    """Names are the user's; none of them meets the checkpoint's own files."""
    store = CheckpointStore(tmp_path)
    module = Frozen("run")
    with store.write(STATE, {"modules": ["run"]}) as folder:
        _saved(module, folder, trained=True)
    latest = store.latest()
    assert latest is not None
    assert read_run_state(latest)[0] == STATE
    other = Frozen("run")
    load_module(other, str(latest), 1)
    assert other.model.weight.equal(module.model.weight)


def test_files_of_a_modules_own(tmp_path: Path) -> None:
    class Own(Frozen):
        def save_checkpoint(self, iteration: int) -> None:
            (self.checkpoint_path / "note").write_text(f"after {iteration}")

        def load_checkpoint(self, iteration: int) -> None:
            self.read = (self.checkpoint_path / "note").read_text(), iteration

    module = Own("own")
    remember_setup(module, False)
    assert _saved(module, tmp_path)
    assert module.checkpoint_path is None
    load_module(module, str(tmp_path), 1)
    assert module.read == ("after 1", 1)


def test_a_state_that_does_not_fit(tmp_path: Path) -> None:
    _saved(Frozen("policy"), tmp_path, trained=True)
    other = Frozen("policy")
    other.model = torch.nn.Linear(3, 2)
    with pytest.raises(
        CheckpointError, match=r"policy: the state in .* does not fit what setup\(\) made: (.|\n)*size mismatch"
    ):
        load_module(other, str(tmp_path), 1)
    del other.model
    with pytest.raises(CheckpointError, match=r"the checkpoint holds model, which setup\(\) did not make"):
        load_module(other, str(tmp_path), 1)


def test_a_module_may_write_its_own_state_dict(tmp_path: Path) -> None:
    class Own(BaseModule):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    module, other = Own("own"), Own("own")
    module.seen = 0
    remember_setup(module, False)
    module.seen = 12
    assert _saved(module, tmp_path)
    load_module(other, str(tmp_path), 1)
    assert other.seen == 12


def test_files_of_a_checkpoint_are_json_and_safetensors_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.write(STATE, {}) as folder:
        _saved(Frozen("policy"), folder, trained=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"latest", "run.json", "policy.state.json", "policy.state.safetensors"}
    assert not any(re.search(rb"\x80[\x02-\x05]c?ctorch|PK\x03\x04", path.read_bytes()) for path in files)


def test_nothing_to_save_is_no_file(tmp_path: Path) -> None:
    assert not _saved(SimpleNamespace(name="rule", state_dict=dict), tmp_path, trained=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
