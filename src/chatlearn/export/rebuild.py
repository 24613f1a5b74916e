"""A module as it was when a checkpoint was written: made as a worker makes it, with the checkpoint's state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.module_state import load_module
from chatlearn.config.check import check_args, raise_problems
from chatlearn.config.environment import escape
from chatlearn.config.load import load_config
from chatlearn.config.schema import Config
from chatlearn.errors import ConfigError, ModuleError
from chatlearn.modules.base import Description
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.worker import Worker


def config_of(content: Mapping[str, Any], checkpoint: Path, settings: Sequence[str] = ()) -> Config:
    """The configuration that a checkpoint was written under.

    Args:
        content: of its ``run.json``.
        checkpoint: for errors.
        settings: what goes over it, such as ``models.policy.args.model_path=/new/place``.

    Raises:
        ConfigError: it is not one that this version reads, or a setting does not fit.
    """
    plain = json.loads(escape(json.dumps(content["config"])))  # its texts are final: nothing comes from the environment
    for model in plain.get("models", {}).values():
        model.pop("model_config_file", None)  # what it held stands here already
    try:
        return load_config(plain, settings)
    except ConfigError as error:
        raise _of(checkpoint, error) from None


def rebuilt(description: Description, config: Config, checkpoint: Path, episode: int) -> Worker:
    """The module's worker after ``setup()``, with the state of the checkpoint.

    Args:
        description: of the module.
        config: of the run.
        checkpoint: a folder without damage.
        episode: complete episodes at that time.

    Raises:
        ConfigError: the module's settings are no longer right, such as a model folder that is gone.
        CheckpointError: the state does not fit what ``setup()`` makes.
        StepError: the module's own code raised.
    """
    module_class, name = description.module_class, description.name
    try:
        raise_problems(check_args(name, module_class.Args, config))
    except ConfigError as error:
        raise _of(checkpoint, error) from None
    model = config.model(name)
    checked = module_class.Args
    settings = ReplicaSettings(
        seed=config.runtime.seed,
        model_args=dict(model.args) if checked is None else checked(**model.args),
        module_args=model,
        runtime_args=config.runtime,
        num_threads=model.cpu_per_process,
    )
    worker = Worker(description, 0, settings)
    if worker.module.name != name:
        raise ModuleError(f"{name}: its class makes a module called {worker.module.name!r}. Give --program train.py.")
    worker.setup()
    worker.apply(load_module, str(checkpoint), episode)
    return worker


def _of(checkpoint: Path, error: ConfigError) -> ConfigError:
    return ConfigError(
        f"The configuration in {checkpoint / 'run.json'} can't be used here. {error}\nChange what was moved with "
        f"--set, such as --set models.NAME.args.model_path=FOLDER."
    )
