"""What tells the death of a replica from other errors of a worker."""

from __future__ import annotations

from chatlearn.errors import WorkerError


class LostReplicaError(WorkerError):
    """A replica died, or its node went away, and nothing within the run can take its place."""
