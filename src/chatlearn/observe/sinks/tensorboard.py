"""TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from chatlearn.observe.sinks.base import SinkContext, numbers_of

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# TensorBoard's messages carry no types.

_PREFIX = "events.out.tfevents."


class TensorBoardSink:
    """Scalars as TensorBoard events in ``tensorboard/``; after a resume, later episodes replace those of before."""

    def __init__(self, context: SinkContext) -> None:
        folder = context.folder / "tensorboard"
        self.note = ""
        _put_before_now(folder)
        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._writer.add_event(Event(wall_time=time.time(), step=context.first_episode, session_log=start))

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Adds each number as a scalar, all in one event, which is in the file then: a kill loses none that a
        checkpoint counts on.
        """
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers_of(row).items()]
        self._writer.add_event(Event(wall_time=time.time(), step=episode, summary=Summary(value=values)))
        self._writer.flush()

    def close(self, status: str = "finished") -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def _put_before_now(folder: Path) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second in which they were made. Where
    the clock went back, or a run goes on within the second, those of earlier parts get numbers for seconds.
    """
    files = sorted(folder.glob(f"{_PREFIX}*"))
    if not files or files[-1].name < f"{_PREFIX}{int(time.time()):010d}":
        return
    for number, file in enumerate(files):
        _, _, rest = file.name.removeprefix(_PREFIX).partition(".")
        file.rename(file.with_name(f"{_PREFIX}{number:010d}.{rest}"))
