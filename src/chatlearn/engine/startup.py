"""What a start on a cluster is at, for whoever waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Startup:
    """Tells each step that a start has come to, with its seconds.

    Args:
        note: takes the text.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._last = note, time.monotonic()

    def reached(self, what: str) -> None:
        """Says that something is there now."""
        now = time.monotonic()
        self._note(f"Cluster: {what} after {now - self._last:.1f} s")
        self._last = now
