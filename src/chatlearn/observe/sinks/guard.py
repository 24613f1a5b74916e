"""What a failing sink does to a run: nothing, beside one warning."""

from __future__ import annotations

import bdb
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

from chatlearn.observe.sinks.base import Sink
from chatlearn.observe.sinks.jsonl import JsonlSink


class GuardedSink:
    """A sink whose exceptions after its construction become one warning that names it; later rows still go to it.

    The sink of ``metrics.jsonl`` is not spared: that file is the record of the run, and a run that can't keep it ends.

    Args:
        sink: any.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._warned = False

    @property
    def note(self) -> str:
        """The sink's note."""
        return self._sink.note

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Hands the row on."""
        if isinstance(self._sink, JsonlSink):
            self._sink.write(episode, row)
            return
        try:
            self._sink.write(episode, row)
        except Exception as error:
            if isinstance(error, bdb.BdbQuit):
                raise
            self._warn("write", error)

    def close(self, status: str = "finished") -> None:
        """Closes the sink."""
        try:
            self._sink.close(status)
        except Exception as error:
            if isinstance(error, bdb.BdbQuit):
                raise
            self._warn("close", error)

    def _warn(self, method: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            kind = type(self._sink)
            warnings.warn(
                f"The sink {kind.__module__}:{kind.__qualname__}: {method} raises {raised_in(error)}. The run goes on; "
                "what the sink did not take stands in metrics.jsonl.",
                stacklevel=4,
            )


def raised_in(error: BaseException) -> str:
    """An exception in words: its type, the place in the innermost frame, its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {error}"
