"""Whether a checkpoint is as it was written."""

from __future__ import annotations

from pathlib import Path

from chatlearn.checkpoint.manifest import damage
from chatlearn.checkpoint.store import episode_of, read_run_state
from chatlearn.errors import CheckpointError


def verify(checkpoint: Path) -> list[str]:
    """Reads all files of a checkpoint and compares them with its list.

    Returns:
        One line for each problem, which names the file and what differs; empty if there is none.
    """
    if problems := damage(checkpoint):
        return problems
    try:
        state, _ = read_run_state(checkpoint)
    except CheckpointError as error:
        return [str(error)]
    if state.episode != episode_of(checkpoint):
        return [f"{checkpoint} is the checkpoint of episode {state.episode}; its folder was renamed."]
    return []
