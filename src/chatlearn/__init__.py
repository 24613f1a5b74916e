"""chatlearn: align language models with modules, plain-function flows and one engine, on a laptop or a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "init": "chatlearn.config.active",
    "get_config": "chatlearn.config.active",
    "Config": "chatlearn.config.schema",
    "Engine": "chatlearn.engine.engine",
    "GRPOEngine": "chatlearn.engine.presets",
    "RLHFEngine": "chatlearn.engine.presets",
    "EvalEngine": "chatlearn.engine.presets",
    "Environment": "chatlearn.engine.environment",
    "Trainer": "chatlearn.engine.trainer",
    "Evaluator": "chatlearn.engine.evaluator",
    "BaseModule": "chatlearn.modules.base",
    "RLHFModule": "chatlearn.modules.base:BaseModule",
    "TorchModule": "chatlearn.modules.torch.module",
    "RLHFTorchModule": "chatlearn.modules.torch.module:TorchModule",
    "StreamDataset": "chatlearn.data.stream",
    "step": "chatlearn.modules.base",
    "after": "chatlearn.flow.order",
    "ControlDependencies": "chatlearn.flow.order",
    **dict.fromkeys(
        (
            "ChatLearnError",
            "ConfigError",
            "FlowError",
            "MissingStepError",
            "ModuleError",
            "DataError",
            "StepError",
            "SyncError",
            "CheckpointError",
            "WorkerError",
            "EngineError",
        ),
        "chatlearn.errors",
    ),
}
"""Public name -> where it lives; imported on first use, so that ``import chatlearn`` costs nothing."""

__all__ = [
    "BaseModule",
    "ChatLearnError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ControlDependencies",
    "DataError",
    "Engine",
    "EngineError",
    "Environment",
    "EvalEngine",
    "Evaluator",
    "FlowError",
    "GRPOEngine",
    "MissingStepError",
    "ModuleError",
    "RLHFEngine",
    "RLHFModule",
    "RLHFTorchModule",
    "StepError",
    "StreamDataset",
    "SyncError",
    "TorchModule",
    "Trainer",
    "WorkerError",
    "__version__",
    "after",
    "get_config",
    "init",
    "step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chatlearn' has no attribute {name!r}")
    import importlib

    home, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(home), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


if TYPE_CHECKING:
    from chatlearn.config.active import get_config, init
    from chatlearn.config.schema import Config
    from chatlearn.data.stream import StreamDataset
    from chatlearn.engine.engine import Engine
    from chatlearn.engine.environment import Environment
    from chatlearn.engine.evaluator import Evaluator
    from chatlearn.engine.presets import EvalEngine, GRPOEngine, RLHFEngine
    from chatlearn.engine.trainer import Trainer
    from chatlearn.errors import (
        ChatLearnError,
        CheckpointError,
        ConfigError,
        DataError,
        EngineError,
        FlowError,
        MissingStepError,
        ModuleError,
        StepError,
        SyncError,
        WorkerError,
    )
    from chatlearn.flow.order import ControlDependencies, after
    from chatlearn.modules.base import BaseModule, step
    from chatlearn.modules.base import BaseModule as RLHFModule
    from chatlearn.modules.torch.module import TorchModule
    from chatlearn.modules.torch.module import TorchModule as RLHFTorchModule
