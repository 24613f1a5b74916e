"""Synchronisations of weights that do not fit get an error that says what, where and how to fix it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from bad_input_cases import Echo, engine_of, fails, refused

from chatlearn import Engine, Environment, FlowError, SyncError, Trainer


class Linear(Echo):
    """A module with a model of the given sizes, or with none."""

    def __init__(self, name: str, *sizes: int) -> None:
        super().__init__(name)
        self.sizes = sizes

    def setup(self) -> None:
        self.model = torch.nn.Sequential(*(torch.nn.Linear(a, 1) for a in self.sizes)) if self.sizes else None


def _synced(source: Linear, destination: Linear) -> Engine:
    engine = Engine(
        Environment(lambda batch: destination.forward_step(batch)), Trainer(lambda batch: source.train_step(batch))
    )
    return engine.set_parameter_sync(source, destination).set_dataset([1, 2])


def test_a_sync_of_unequal_shapes_lists_them_all() -> None:
    words = (
        "weights of trained do not fit rollout",
        "0.weight is [1, 2] in trained and [1, 3] in rollout",
        "1.weight [1, 4] is missing in rollout",
        "1.bias [1] is missing in rollout",
        "Build both from the same model",
    )
    fails(_synced(Linear("trained", 2, 4), Linear("rollout", 3)), SyncError, *words)
    assert toys.events("rollout.forward_step") == []


def test_a_sync_with_parameters_on_one_side() -> None:
    words = ("trained -> rollout", "rollout has no parameters", "rollout.setup()", "set_parameter_sync")
    fails(_synced(Linear("trained", 2), Linear("rollout")), SyncError, *words)


def test_a_sync_without_parameters_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    _synced(Linear("trained"), Linear("rollout")).learn()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "trained -> rollout" in notes[0]


def test_a_sync_with_a_module_that_no_flow_uses(tmp_path: Path) -> None:
    engine = engine_of(Echo("used")).set_parameter_sync(Echo("stranger"), Echo("used"))
    words = ("set_parameter_sync(stranger, used)", "no flow of this engine", "'stranger'", "the flows use used")
    refused(engine, FlowError, *words, folder=tmp_path)
