"""Weights & Biases, online or offline."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

import wandb
import wandb.errors

from chatlearn.errors import ConfigError
from chatlearn.observe.sinks.base import SinkContext, numbers_of, remember_id, remembered_id

FINISH_TIMEOUT_SECONDS = 60.0
"""How long the end of a run waits for uploads; what is left can be sent with ``wandb sync``."""

_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


class WandbSink:
    """A run of W&B, with its files in ``wandb/`` of the run folder.

    W&B's own environment variables decide: ``WANDB_MODE``, ``WANDB_PROJECT`` (by default the experiment's name),
    ``WANDB_ENTITY``, ``WANDB_NAME``, … Without a key, and with no mode asked for, the run is offline and says so:
    nothing asks questions. After a resume the same run goes on. Rows that it has already are not sent again, since W&B
    does not replace a step.

    Raises:
        ConfigError: W&B refuses the run or can't be reached, before anything is trained.
    """

    def __init__(self, context: SinkContext) -> None:
        known = remembered_id(context, "wandb")
        given = None if known else os.environ.get("WANDB_RUN_ID")
        identity = known or given or uuid.uuid4().hex[:12]
        try:
            self._run = _start(context, identity)
        except (wandb.errors.Error, ValueError, TimeoutError) as error:
            raise ConfigError(
                f"The sink wandb: {error} Log in with `wandb login`, or set WANDB_MODE=offline and send the run later "
                "with `wandb sync`."
            ) from None
        remember_id(context, "wandb", identity)
        self.note = f"W&B: {self._where()}"

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Logs the numbers of a row under the episode as the step."""
        if episode >= self._run.step:  # a resumed run makes the same rows again
            self._run.log(numbers_of(row), step=episode, commit=True)

    def close(self, status: str = "finished") -> None:
        """Ends the run; a failure of W&B at the end is a warning, since the training is done."""
        try:
            self._run.finish(exit_code=_EXIT_CODES.get(status, 1))
        except (wandb.errors.Error, OSError) as error:
            warnings.warn(f"W&B did not finish: {error}. Send with `{self._sync_command()}`.", stacklevel=2)

    def _where(self) -> str:
        if self._run.disabled:
            return "disabled by WANDB_MODE"
        return f"offline; send with `{self._sync_command()}`" if self._run.offline else str(self._run.url)

    def _sync_command(self) -> str:
        return f"wandb sync {self._run.settings.sync_dir}"


def _start(context: SinkContext, identity: str) -> wandb.Run:
    mode = os.environ.get("WANDB_MODE") or (None if wandb.login(prompt=False, verify=False) else "offline")
    return wandb.init(
        project=None if os.environ.get("WANDB_PROJECT") else context.exp_name,
        name=None if os.environ.get("WANDB_NAME") else context.folder.name,
        id=identity,
        resume=None if mode in ("offline", "dryrun", "disabled") else "allow",
        dir=context.folder,
        config=dict(context.config),
        mode=mode,  # pyright: ignore[reportArgumentType]
        settings=_settings(),
        reinit="create_new",  # the program may have a run of its own
    )


def _settings() -> wandb.Settings:
    """Quiet, and with an end; never against the user's environment."""
    settings: dict[str, Any] = {"quiet": True, "console": "off", "finish_timeout": FINISH_TIMEOUT_SECONDS}
    return wandb.Settings(**{key: value for key, value in settings.items() if f"WANDB_{key.upper()}" not in os.environ})
