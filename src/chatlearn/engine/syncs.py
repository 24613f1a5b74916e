"""The parameter syncs of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chatlearn.engine.deployment import Deployment
from chatlearn.modules.base import BaseModule
from chatlearn.sync.sync import ParameterSync


def open_syncs(
    deployment: Deployment, pairs: Iterable[tuple[BaseModule, BaseModule, int]], note: Callable[[str], None]
) -> list[tuple[ParameterSync, int]]:
    """Plans the sync of each pair, beside its frequency; a pair without parameters is a note.

    Raises:
        SyncError: the weights of a pair do not fit.
    """
    syncs: list[tuple[ParameterSync, int]] = []
    for source, destination, frequency in pairs:
        deployment.ensure([source.name, destination.name])
        replicas = deployment.handles(destination.name)
        sync = ParameterSync(deployment.cluster, deployment.handles(source.name)[0], replicas)
        deployment.restorers.append((destination.name, sync.restore))
        if sync.note:
            note(f"note: {sync.note}")
        syncs.append((sync, frequency))
    return syncs
