"""The configuration of the run at hand: set by :func:`init`, read by the engine."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from chatlearn.config.load import Source, load_config, parse_command_line
from chatlearn.config.schema import Config
from chatlearn.errors import ConfigError


@dataclass
class _Active:
    config: Config | None = None
    generation: int = 0


_active = _Active()
_over_all: ContextVar[tuple[str, ...]] = ContextVar("over_all", default=())


@contextmanager
def over_all(overrides: Sequence[str]) -> Generator[None]:
    """Inside, these settings go over whatever :func:`init` loads, as those of a command line do."""
    token = _over_all.set(tuple(overrides))
    try:
        yield
    finally:
        _over_all.reset(token)


def init(config: Source = None) -> Config:
    """Begins a run: loads the configuration that the next engine uses.

    Without an argument it reads the command line: ``-c FILE`` (or ``--config FILE``), ``--set SETTING|FILE``,
    ``--resume [PATH]``, ``--allow-change KEY`` and ``section.key=value``. It leaves all other words to the program, and
    without ``-c`` it takes the defaults. With an argument it ignores the command line. It may be called again: a new
    run begins.

    Args:
        config: Path of a YAML file, a list of paths, a mapping, or a Config.

    Returns:
        The configuration.

    Raises:
        ConfigError: Lists every problem found. What an earlier call set stays in force then.
    """
    if config is None:
        loaded = load_config(*parse_command_line(sys.argv[1:]))
    else:
        loaded = config if isinstance(config, Config) else load_config(config)
    if overrides := _over_all.get():
        loaded = load_config(loaded, overrides)
    _active.config = loaded
    _active.generation += 1
    return loaded


def get_config() -> Config:
    """The configuration that the last :func:`init` loaded.

    Raises:
        ConfigError: If it was not called yet.
    """
    if _active.config is None:
        raise ConfigError(
            "There is no configuration yet. Call chatlearn.init() first, at the top of the program: "
            "it reads -c FILE and section.key=value from the command line; "
            "chatlearn.init(path) and chatlearn.init({...}) work too."
        )
    return _active.config


def active_generation() -> int:
    """How many times :func:`init` succeeded in this process: it tells one run from the next."""
    return _active.generation
