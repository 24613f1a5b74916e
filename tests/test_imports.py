"""What importing costs, and which names there are."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, Evaluator, GRPOEngine, RLHFEngine, Trainer

HEAVY = ["torch", "ray", "transformers", "tensorboard", "matplotlib", "reasoning_gym"]


@pytest.mark.parametrize("name", ["chatlearn", "chatlearn.config", "chatlearn.flow", "chatlearn.cli"])
def test_light_imports(name: str) -> None:
    """In a fresh interpreter. The promise is 0.3 CPU-seconds for ``import chatlearn``; a busy machine gets more."""
    program = (
        "import time, sys, json\n"
        "start = time.process_time()\n"
        f"import {name}\n"
        f"print(json.dumps([time.process_time() - start, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    seconds, loaded = json.loads(done.stdout)
    assert loaded == []
    if name == "chatlearn":
        assert seconds < 1.0


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from chatlearn.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


PUBLIC = [
    "init",
    "get_config",
    "Config",
    "Engine",
    "EvalEngine",
    "GRPOEngine",
    "RLHFEngine",
    "Environment",
    "Trainer",
    "Evaluator",
    "BaseModule",
    "TorchModule",
    "RLHFModule",
    "RLHFTorchModule",
    "StreamDataset",
    "step",
    "after",
    "ControlDependencies",
    "ChatLearnError",
    "ConfigError",
    "FlowError",
    "DataError",
    "StepError",
    "SyncError",
    "CheckpointError",
    "WorkerError",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve(name: str) -> None:
    assert getattr(chatlearn, name) is not None
    assert name in dir(chatlearn)
    assert name in chatlearn.__all__


def test_everything_in_all_resolves() -> None:
    for name in chatlearn.__all__:
        assert getattr(chatlearn, name) is not None


def test_both_spellings_are_the_same_thing() -> None:
    assert chatlearn.RLHFModule is chatlearn.BaseModule
    assert chatlearn.RLHFTorchModule is chatlearn.TorchModule


@pytest.mark.parametrize("name", ["RLHFMegatronModule", "MegatronModule", "DPOEngine", "VLLMModule", "typo"])
def test_what_does_not_work_yet_has_no_name(name: str) -> None:
    """A name appears when the thing works, never as an alias of something else."""
    assert not hasattr(chatlearn, name)
    with pytest.raises(ImportError):
        exec(f"from chatlearn import {name}")


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        ("ConfigError", ValueError),
        ("FlowError", TypeError),
        ("DataError", ValueError),
        ("StepError", RuntimeError),
        ("SyncError", RuntimeError),
        ("CheckpointError", RuntimeError),
        ("WorkerError", RuntimeError),
        ("MissingStepError", AttributeError),
        ("ModuleError", TypeError),
        ("EngineError", RuntimeError),
    ],
)
def test_errors_are_ours_and_standard_and_survive_pickling(name: str, standard: type[Exception]) -> None:
    import pickle

    kind = getattr(chatlearn, name)
    assert issubclass(kind, chatlearn.ChatLearnError)
    assert issubclass(kind, standard)
    copied = pickle.loads(pickle.dumps(kind("what\nand where")))
    assert type(copied) is kind
    assert str(copied) == "what\nand where"


def _signature(function: Any) -> str:
    """Names, order, kinds and defaults; not the annotations."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=p.empty) for p in parameters]
    return str(inspect.Signature(bare))


SIGNATURES = {
    Engine: {
        "__init__": "(self, environment=None, trainer=None, evaluator=None)",
        "set_environment": "(self, environment)",
        "set_trainer": "(self, trainer)",
        "set_evaluator": "(self, evaluator)",
        "set_dataset": "(self, prompts)",
        "set_parameter_sync": "(self, source, destination, frequency=None)",
        "set_multiple_datasets": "(self, datasets, data_ratio=None)",
        "set_sampler": "(self, sampler)",
        "set_replay_sample_fn": "(self, function)",
        "set_relay_sample_fn": "(self, function)",
        "add_callback": "(self, point, function)",
        "save_checkpoint": "(self)",
        "logging_summary": "(self)",
        "learn": "(self)",
        "evaluate": "(self, evaluator=None)",
        "call": "(self, step, *data, **constants)",
        "check": "(self)",
        "stop": "(self)",
    },
    RLHFEngine: {"__init__": "(self, policy, reference, reward, value, ppo_policy, ppo_value)"},
    GRPOEngine: {
        "__init__": "(self, policy, reference, reward, ppo_policy, *, advantages=None, reward_weights=None, "
        "combine='sum_then_normalize', recompute_logprobs=False, greedy_baseline=False, drop_silent_groups=False)"
    },
    EvalEngine: {"__init__": "(self, eval_flow=None, evaluator=None)", "eval": "(self)"},
    Environment: {
        "__init__": "(self, flow)",
        "set_dataset": "(self, prompts)",
        "set_multiple_datasets": "(self, datasets, data_ratio=None)",
        "stream": "(self, deployment, state, note=<built-in function print>)",
        "batch_size": "(self, deployment)",
        "run": "(self, deployment, batches, *, phase, counters, place, is_eval=False, lost=None)",
        "fetched": "(self, deployment, batches)",
    },
    Trainer: {
        "__init__": "(self, flow)",
        "stream": "(self, deployment, state)",
        "train": "(self, deployment, state, experience)",
    },
    Evaluator: {
        "__init__": "(self, flow)",
        "set_dataset": "(self, prompts)",
        "evaluate": "(self, deployment, episode, train_iteration)",
        "set_multiple_datasets": "(self, datasets)",
        "set_post_process_func": "(self, function)",
        "post_process": "(self, results, info)",
    },
    BaseModule: {
        "__init__": "(self, name)",
        "uniforms": "(self, ids, n)",
        "all_reduce": "(self, x)",
        "log": "(self, name, value, reduction='mean')",
        "add_padding_config": "(self, key, padding_value=0.0, padding_type='right')",
        "put": "(self, key, value)",
        "get": "(self, key, default=None)",
        "state_dict": "(self)",
        "load_state_dict": "(self, state)",
    },
}


@pytest.mark.parametrize(
    ("cls", "method"), [(cls, method) for cls, methods in SIGNATURES.items() for method in methods]
)
def test_signatures(cls: type, method: str) -> None:
    assert _signature(getattr(cls, method)) == SIGNATURES[cls][method]


@pytest.mark.parametrize("cls", [Engine, RLHFEngine, GRPOEngine, EvalEngine, Environment, Trainer, Evaluator])
def test_every_public_method_is_pinned(cls: type) -> None:
    pinned = {name for base in cls.__mro__ for name in SIGNATURES.get(base, {})} | set(SIGNATURES[Environment])
    public = {n for n, f in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}
    assert public <= pinned


def test_setters_return_the_engine() -> None:
    """They are chained, as in ``Engine(…).set_evaluator(…).set_dataset(…)``."""
    engine, module = Engine(), BaseModule("a")
    assert engine.set_dataset([1]) is engine
    assert engine.set_environment(None) is engine
    assert engine.set_trainer(None) is engine
    assert engine.set_evaluator(None) is engine
    assert engine.set_parameter_sync(module, module) is engine


def test_init_and_get_config() -> None:
    assert _signature(chatlearn.init) == "(config=None)"
    assert _signature(chatlearn.get_config) == "()"
    assert importlib.import_module("chatlearn.config").load_config is not None
