"""TensorBoard events."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from chatlearn.observe.sinks.base import SinkContext, numbers_of

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# TensorBoard's messages carry no types.

_BEGINNING = "events.out.tfevents."


class TensorBoardSink:
    """Scalars as TensorBoard events in ``tensorboard/``; after a resume, later episodes replace those of before.

    An event is in its file when :meth:`write` returns, so a process that is killed loses none.
    """

    def __init__(self, context: SinkContext) -> None:
        self.note = ""
        folder = context.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / _last_name(folder)).open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(Event(wall_time=time.time(), step=context.first_episode, session_log=start))

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Adds each number as a scalar, all in one event."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers_of(row).items()]
        self._add(Event(wall_time=time.time(), step=episode, summary=Summary(value=values)))

    def close(self, status: str = "finished") -> None:
        """Closes the event file."""
        self._file.close()

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _last_name(folder: Path) -> str:
    """A name that comes after those of all event files in a folder: TensorBoard reads them in this order, whatever the
    clock has said when they were made.
    """
    known = [path.name.removeprefix(_BEGINNING).partition(".")[0] for path in folder.glob(f"{_BEGINNING}*")]
    seconds = max([int(time.time()), *(int(each) + 1 for each in known if each.isdecimal())])
    return f"{_BEGINNING}{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
