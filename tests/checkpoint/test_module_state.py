"""What a checkpoint keeps of a module: all that may have changed since setup, and no more."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chatlearn import BaseModule, CheckpointError, StepError
from chatlearn.checkpoint.module_state import (
    drifting_modules,
    export_module,
    finish_saving,
    has_saved,
    load_module,
    remember_setup,
    save_module,
)
from chatlearn.checkpoint.store import CheckpointStore, RunState, read_run_state


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
    is_kept = save_module(module, str(folder), 1, trained, synced)
    assert has_saved(module)
    written = finish_saving(module)
    assert bool(written) == is_kept
    assert {name: file.nbytes for name, file in written.items()} == {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob(f"{module.name}.*/**/*")
    } | {path.name: path.stat().st_size for path in folder.glob(f"{module.name}.state.*")}
    return is_kept


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


def test_nothing_to_save_is_no_file(tmp_path: Path) -> None:
    assert not _saved(SimpleNamespace(name="rule", state_dict=dict), tmp_path, trained=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_module_may_be_called_run(tmp_path: Path) -> None:
    """Names are the user's; none of them meets the checkpoint's own files."""
    store = CheckpointStore(tmp_path)
    module = Frozen("run")
    with store.write(RunState(episode=3), {"modules": ["run"]}) as folder:
        _saved(module, folder, trained=True)
    latest = store.latest()
    assert latest is not None
    assert read_run_state(latest)[0] == RunState(episode=3)
    other = Frozen("run")
    load_module(other, str(latest), 1)
    assert other.model.weight.equal(module.model.weight)


def test_files_of_a_checkpoint_are_json_and_safetensors_only(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.write(RunState(episode=3), {}) as folder:
        _saved(Frozen("policy"), folder, trained=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "latest",
        "manifest.json",
        "run.json",
        "policy.state.json",
        "policy.state.rank0.safetensors",
    }
    assert not any(re.search(rb"\x80[\x02-\x05]c?ctorch|PK\x03\x04", path.read_bytes()) for path in files)


def _by_data(module: Frozen) -> None:
    module.model.weight.data.add_(1)


def _by_numpy(module: Frozen) -> None:
    module.model.weight.detach().numpy()[0, 0] += 1


class Averaging(Frozen):
    """Changes itself between episodes."""

    def after_episode(self) -> None:
        _by_data(self)


class Moving(Frozen):
    """Changes itself before episodes."""

    def before_episode(self) -> None:
        _by_numpy(self)


class Counting(Frozen):
    """Changes itself in steps."""

    stateful = True


@pytest.mark.parametrize("kind", [Averaging, Moving, Counting])
@pytest.mark.parametrize("change", [_by_data, _by_numpy])
def test_writes_that_leave_no_trace_are_saved_where_the_class_may_make_them(
    kind: type[Frozen], change: Any, tmp_path: Path
) -> None:
    module = kind("average")
    remember_setup(module, False)
    version = module.model.weight._version
    change(module)
    assert module.model.weight._version == version
    assert _saved(module, tmp_path)
    other = kind("average")
    load_module(other, str(tmp_path), 1)
    assert other.model.weight.equal(module.model.weight)


@pytest.mark.parametrize("kind", [Averaging, Moving, Counting])
def test_a_class_that_may_change_its_state_and_did_not_writes_nothing(kind: type[Frozen], tmp_path: Path) -> None:
    """Neither a write that changes nothing nor a tensor in another place is a change of contents."""
    module = kind("average")
    remember_setup(module, False)
    module.model.weight.data = module.model.weight.data.clone()
    assert not _saved(module, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(2, 3).T,
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=["0-d", "empty", "bfloat16", "bool", "transposed", "complex"],
)
def test_contents_of_any_tensor_are_compared(value: torch.Tensor, tmp_path: Path) -> None:
    module = Averaging("average", value)
    remember_setup(module, False)
    module.counter.value = value.clone()
    assert not _saved(module, tmp_path)
    module.counter.value = value + 1 if value.dtype != torch.bool else ~value
    assert _saved(module, tmp_path) == bool(value.numel())
    module.counter.value = value.reshape(1, -1)
    assert _saved(module, tmp_path)


def test_drifting_modules_are_those_whose_sync_is_not_the_last_word() -> None:
    """b follows a steady source; the others follow, or are, a module that changes after the sync."""
    steady, follower, average = Frozen("a"), Frozen("b"), Averaging("c")
    assert drifting_modules([(steady, follower)]) == set()
    assert drifting_modules([(steady, follower), (steady, average)]) == {"c"}
    assert drifting_modules([(average, follower)]) == {"b"}
    assert drifting_modules([(steady, Counting("d")), (Moving("e"), follower)]) == {"d"}


def _fail(*_: Any) -> None:
    raise ValueError("mine")


@pytest.mark.parametrize("method", ["save_checkpoint", "load_checkpoint", "state_dict", "export"])
def test_an_exception_in_a_method_of_the_life_cycle_names_module_and_method(method: str, tmp_path: Path) -> None:
    def live(module: Any) -> None:
        _saved(module, tmp_path, trained=True)
        load_module(module, str(tmp_path), 1)
        export_module(module, str(tmp_path / "exported"))

    module = type("Broken", (Frozen,), {method: _fail})("policy")
    with pytest.raises(StepError, match=rf"ValueError: mine\n  raised in policy\.{method}\.") as caught:
        live(module)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__traceback__ is not None
    assert _last_function(caught.value) == "_fail"


def _last_function(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_name


def test_a_state_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    module = type("Broken", (Frozen,), {"state_dict": lambda self: [1]})("policy")
    with pytest.raises(CheckpointError, match=r"policy\.state_dict\(\) returns list\. Return a dict"):
        _saved(module, tmp_path, trained=True)


def test_methods_for_own_files_may_take_no_iteration(tmp_path: Path) -> None:
    class Own(Frozen):
        def save_checkpoint(self) -> None:
            (self.checkpoint_path / "note").write_text("saved")

        def load_checkpoint(self) -> None:
            self.read = (self.checkpoint_path / "note").read_text()

    module = Own("own")
    assert _saved(module, tmp_path)
    load_module(module, str(tmp_path), 1)
    assert module.read == "saved"
