"""What a path on the command line stands for: a run, its folder of checkpoints, or one of these."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatlearn.errors import CheckpointError, ConfigError

POINTERS = ("latest", "best")


@dataclass(frozen=True)
class Place:
    """Where checkpoints lie.

    Attributes:
        folder: that they lie in.
        run: folder of the run that was named; ``None`` where another folder was.
        only: the one that was named; ``None``: all of the folder.
    """

    folder: Path
    run: Path | None = None
    only: Path | None = None


def place_of(text: str) -> Place:
    """What a path stands for.

    Args:
        text: of a run folder, a folder of checkpoints (such as ``runtime.data_checkpoint_path``), a checkpoint, or one
            of the pointers ``latest`` and ``best``.

    Raises:
        CheckpointError: it is none of these.
        ConfigError: it is a run whose ``config.yaml`` can't be read.
    """
    path = Path(text).absolute()
    if path.is_file() and path.name in POINTERS:
        path = path.with_name(path.read_text(encoding="utf-8", errors="replace").strip())
    if is_checkpoint(path):
        return Place(path.parent, only=path)
    if (path / "config.yaml").is_file() or (path / "checkpoints").is_dir():
        return Place(_checkpoints_of(path), run=path)
    if path.is_dir() and (path.name == "checkpoints" or any(_contents(path))):
        run = path.parent if (path.parent / "config.yaml").is_file() and path.name == "checkpoints" else None
        return Place(path, run=run)
    what = "There is nothing at" if not path.exists() else "There are no checkpoints in"
    raise CheckpointError(
        f"{what} {path}. Give the folder of a run (it holds config.yaml), a folder of checkpoints, or one of its "
        f"episode-… folders."
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder of a checkpoint, whole or not."""
    return path.is_dir() and (path.name.lstrip(".").startswith("episode-") or (path / "run.json").is_file())


def _checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    usual = run / "checkpoints"
    if usual.is_dir():
        return usual
    from chatlearn.config.load import load_config

    try:
        given = load_config(run / "config.yaml").runtime.data_checkpoint_path
    except ConfigError as error:
        raise ConfigError(f"{run} holds no checkpoints/, and its config.yaml can't be read. {error}") from None
    return Path(given).absolute() if given else usual


def _contents(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if is_checkpoint(path) or path.name in POINTERS)
