"""Weights that do not fit are all listed; none on either side are a note. Every kind once: ``tests/bad_inputs.py``."""

from __future__ import annotations

import pytest
import torch
import toys
from bad_input_areas.program import Echo
from refusal_cases import fails

from chatlearn import Engine, Environment, SyncError, Trainer


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


def test_a_sync_without_parameters_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    _synced(Linear("trained"), Linear("rollout")).learn()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "trained -> rollout" in notes[0]
