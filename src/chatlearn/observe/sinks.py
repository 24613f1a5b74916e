"""Where metrics go: one row per episode."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Takes rows of metrics."""

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Takes the row of a complete episode (counted from 1)."""
        ...

    def close(self) -> None:
        """Flushes and closes files."""
        ...


class JsonlSink:
    """``metrics.jsonl``: one JSON object a line, flushed line by line.

    Keys under ``time/`` are the only ones that differ between equal runs.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"episode": episode, **row}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardSink:
    """Scalars as TensorBoard events.

    Args:
        folder: of the event files.
        first_episode: episodes from here on replace those of an earlier, interrupted part of the run.
    """

    def __init__(self, folder: Path, first_episode: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first_episode, session_log=start))

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Adds each number as a scalar, all in one event."""
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=episode, summary=summary))

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def open_sinks(folder: Path, first_episode: int) -> list[Sink]:
    """The sinks of a run folder; TensorBoard where it is installed."""
    sinks: list[Sink] = [JsonlSink(folder / "metrics.jsonl")]
    if find_spec("tensorboard") is not None:
        sinks.append(TensorBoardSink(folder / "tensorboard", first_episode))
    return sinks
