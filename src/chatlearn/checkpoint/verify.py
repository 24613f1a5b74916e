"""Whether a checkpoint is as it was written."""

from __future__ import annotations

from pathlib import Path

from chatlearn.checkpoint.manifest import damage
from chatlearn.checkpoint.store import has_name, read_run_state
from chatlearn.errors import CheckpointError


def verify(checkpoint: Path, *, deep: bool = True) -> list[str]:
    """Compares the files of a checkpoint with its list, and its number with its name.

    Args:
        checkpoint: its folder.
        deep: reads all files; else JSON files only, and the lengths of the others.

    Returns:
        One line for each problem, which names the file and what differs; empty if there is none.
    """
    if problems := damage(checkpoint, deep=deep):
        return problems
    try:
        state, _ = read_run_state(checkpoint)
    except CheckpointError as error:
        return [str(error)]
    if not has_name(checkpoint, state.episode):
        return [f"{checkpoint} is the checkpoint of episode {state.episode}; its folder was renamed."]
    return []
