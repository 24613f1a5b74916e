"""A process beside the driver: the way past the order in which the driver's own calls reach a worker."""

from __future__ import annotations

from typing import Any

import ray


class Relay:
    """Passes control calls on. Ray sends the calls of one process to an actor in order, so that a control call of the
    driver would wait for data calls whose inputs are not there yet.
    """

    def control(self, actor: Any, head: bytes) -> Any:
        """The answer of a worker to a control call."""
        return ray.get(actor.control.remote(head))
