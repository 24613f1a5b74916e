"""The hierarchy of errors."""

from __future__ import annotations

import inspect
import pickle

import pytest

from chatlearn import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind is not errors.ChatLearnError]

STANDARD = {
    "ConfigError": ValueError,
    "FlowError": TypeError,
    "MissingStepError": AttributeError,
    "ModuleError": TypeError,
    "DataError": ValueError,
    "StepError": RuntimeError,
    "SyncError": RuntimeError,
    "CheckpointError": RuntimeError,
    "WorkerError": RuntimeError,
    "EngineError": RuntimeError,
}


def test_the_kinds():
    assert {kind.__name__ for kind in KINDS} == set(STANDARD)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_ours_and_a_standard_type_and_survives_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what, where, how to fix it")))
    assert type(error) is kind
    assert isinstance(error, errors.ChatLearnError)
    assert isinstance(error, STANDARD[kind.__name__])
    assert str(error) == "what, where, how to fix it"
