"""TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from chatlearn.observe.sinks.base import SinkContext, numbers_of

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# TensorBoard's messages carry no types.


class TensorBoardSink:
    """Scalars as TensorBoard events in ``tensorboard/``; after a resume, later episodes replace those of before."""

    def __init__(self, context: SinkContext) -> None:
        folder = context.folder / "tensorboard"
        self.note = ""
        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._writer.add_event(Event(wall_time=time.time(), step=context.first_episode, session_log=start))

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Adds each number as a scalar, all in one event."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers_of(row).items()]
        self._writer.add_event(Event(wall_time=time.time(), step=episode, summary=Summary(value=values)))

    def close(self, status: str = "finished") -> None:
        """Flushes and closes the event file."""
        self._writer.close()
