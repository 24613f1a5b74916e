"""Trackio, local by default."""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Mapping
from typing import Any

import trackio
from trackio import context_vars

from chatlearn.errors import ConfigError
from chatlearn.observe.sinks.base import SinkContext, numbers_of, remember_id, remembered_id

# pyright: reportUnknownMemberType=false
# Trackio takes bare dicts.


class TrackioSink:
    """A run of Trackio, in the project called like the experiment.

    Trackio keeps all projects of a user in one place, which its dashboard reads: ``TRACKIO_DIR``, by default below
    ``~/.cache/huggingface``. ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` send rows elsewhere. After a resume the
    same run goes on; episodes that it has already are not logged twice.

    Raises:
        ConfigError: Trackio refuses the project's name, or can't reach the space that it is told to use.
    """

    def __init__(self, context: SinkContext) -> None:
        name = remembered_id(context, "trackio") or f"{context.folder.name}-{secrets.token_hex(3)}"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                config = dict(context.config)
                self._run = trackio.init(context.exp_name, name, config=config, resume="allow", embed=False)
        except (ValueError, OSError) as error:
            raise ConfigError(f"The sink trackio: {error}") from None
        self._next: int = getattr(self._run, "_next_step", 0)  # no public name for it
        remember_id(context, "trackio", name)
        self.note = f"Trackio: run {name}; show with `trackio show --project {context.exp_name}`"

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Logs the numbers of a row under the episode as the step."""
        if episode >= self._next:  # a resumed run makes the same rows again
            self._run.log(numbers_of(row), step=episode)

    def close(self, status: str = "finished") -> None:
        """Writes what is queued."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
        if context_vars.current_run.get() is self._run:
            context_vars.current_run.set(None)  # or Trackio ends it once more when the program exits
