"""What each replica did when: a trace in Chrome's event format, which Perfetto (https://ui.perfetto.dev) opens.

A replica has one track. The wait of a call before its work has a track of its own ("policy[0] waiting"), of async
slices, since it overlaps with the work of the call before, and with other waits.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_END = b"\n]}\n"
_FLUSH_AT = 50_000
"""Spans kept in memory at most, however long an episode is."""

Span = tuple[str, str, float, float, float, Mapping[str, Any]]
"""(track, name, start, end, seconds of waiting before the start, further arguments); an instant has the track ""."""


@dataclass(frozen=True)
class TrackLoad:
    """How much a replica worked.

    Attributes:
        calls: number of them.
        busy_seconds: sum over its calls.
        waiting_seconds: sum of the waits of its calls before their work; waits may overlap.
    """

    calls: int = 0
    busy_seconds: float = 0.0
    waiting_seconds: float = 0.0


@dataclass(slots=True)
class _Lane:
    """A track of the trace: when its last slice ends, and its number."""

    end: float
    tid: int


class TraceFile:
    """Collects spans and writes them at each flush, after which the file is valid JSON.

    A file that is there already goes on (a resumed run). One that is larger than ``max_bytes`` is left, and
    ``trace-2.json``, ``trace-3.json``, … follow it. Any thread may add spans.

    Args:
        path: of the first file, such as ``runs/digits/trace.json``.
        max_bytes: of one file; a flush may exceed it by a part of its spans.
        process: name of the process in the trace.
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 * 2**20, process: str = "chatlearn") -> None:
        self._path, self._max_bytes, self._process = path, max_bytes, process
        self._pending: deque[Span] = deque()
        self._lock = threading.Lock()
        self._quoted: dict[str, str] = {}
        self._wait_fields: dict[str, str] = {}
        self._tracks: dict[str, int] = {}
        self._lanes: dict[str, list[_Lane]] = {}
        self._number = len(trace_files(path)) or 1
        self._start = now = time.time()
        self._file = self._reopen(_numbered(path, self._number)) or self._create()
        self._clock = now - time.perf_counter() - self._start  # seconds of the trace where perf_counter() is 0
        self._wait_id = int(now * 1e6)  # so that ids differ between the parts of a resumed run

    def add(self, track: str, name: str, start: float, end: float, waited: float = 0.0, **args: Any) -> None:
        """Adds the span of one call.

        Args:
            track: of the replica, such as ``policy[0]``.
            name: of the step.
            start: of the work, in seconds of ``time.perf_counter()``.
            end: of the work.
            waited: seconds between the call and the start of the work.
            args: shown with the span: episode, batch index, rows.
        """
        self._pending.append((track, name, start, end, waited, args))
        if len(self._pending) >= _FLUSH_AT:
            self.flush()

    def instant(self, name: str, **args: Any) -> None:
        """Marks this moment on all tracks, such as the start of an episode."""
        now = time.perf_counter()
        self._pending.append(("", name, now, now, 0.0, args))

    def flush(self) -> None:
        """Writes what was added; called once an episode."""
        with self._lock:
            spans = [self._pending.popleft() for _ in range(len(self._pending))]
            spans.sort(key=lambda span: span[2])
            for first in range(0, len(spans), 5000):
                if self._file.tell() > self._max_bytes:
                    self._rotate()
                num_tracks = len(self._tracks)
                events = [self._format(span) for span in spans[first : first + 5000]]
                names = [_track_name(label, tid) for label, tid in list(self._tracks.items())[num_tracks:]]
                self._write([*names, *events])

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        self._file.close()

    def _format(self, span: Span) -> str:
        """The events of a span, one a line. This is the hot path: 3 to 4 µs with a wait."""
        track, name, start, end, waited, args = span
        at = (start + self._clock) * 1e6
        more = "".join([f',"{key}":{value if type(value) is int else _plain(value)}' for key, value in args.items()])
        if not track:
            return f'{{"ph":"i","s":"g","pid":1,"tid":0,"name":{json.dumps(name)},"ts":{at:.1f},"args":{{{more[1:]}}}}}'
        quoted = self._quoted.get(name) or self._quote(name)
        lanes = self._lanes.get(track)
        lane = lanes[0] if lanes and lanes[0].end <= start else self._free_lane(track, start)
        lane.end = end
        work = (
            f'{{"ph":"X","cat":"work","pid":1,"tid":{lane.tid},"name":{quoted},"ts":{at:.1f},'
            f'"dur":{(end - start) * 1e6:.1f},"args":{{"waited":{waited:.7f}{more}}}}}'
        )
        return work if waited <= 0 else f"{work},\n{self._format_wait(track, at, waited)}"

    def _format_wait(self, track: str, at: float, waited: float) -> str:
        """An async slice that ends at ``at`` (microseconds)."""
        self._wait_id += 1
        fields = self._wait_fields.get(track)
        if fields is None:
            name = json.dumps(f"{track} waiting")
            fields = self._wait_fields[track] = f'"cat":"waiting","pid":1,"tid":0,"name":{name}'
        wait = f'{fields},"id":"0x{self._wait_id:x}"'
        return f'{{"ph":"b",{wait},"ts":{at - waited * 1e6:.1f}}},\n{{"ph":"e",{wait},"ts":{at:.1f}}}'

    def _free_lane(self, track: str, start: float) -> _Lane:
        """Slices of one track must not overlap, so a replica that runs calls side by side gets further tracks."""
        lanes = self._lanes.setdefault(track, [])
        for lane in lanes:
            if lane.end <= start:
                return lane
        label = track if not lanes else f"{track} #{len(lanes) + 1}"
        lanes.append(_Lane(start, self._tracks.setdefault(label, len(self._tracks) + 1)))
        return lanes[-1]

    def _quote(self, text: str) -> str:
        quoted = self._quoted[text] = json.dumps(text)
        return quoted

    def _write(self, events: Sequence[str]) -> None:
        """Puts events before the closing brackets, in one write."""
        self._file.seek(-len(_END), 2)
        self._file.write("".join([f",\n{event}" for event in events]).encode() + _END)
        self._file.flush()

    def _create(self) -> BinaryIO:
        """Begins a file, with the names of the tracks that there are."""
        head = f'{{"displayTimeUnit":"ms","otherData":{{"start_unix_seconds":{self._start!r}}},"traceEvents":[\n'
        process = f'{{"ph":"M","name":"process_name","pid":1,"args":{{"name":{json.dumps(self._process)}}}}}'
        names = [_track_name(label, number) for label, number in self._tracks.items()]
        file = _numbered(self._path, self._number).open("w+b")
        file.write(head.encode() + ",\n".join([process, *names]).encode() + _END)
        file.flush()
        return file

    def _rotate(self) -> None:
        self._file.close()
        self._number += 1
        self._file = self._create()

    def _reopen(self, path: Path) -> BinaryIO | None:
        """Goes on in a file, behind its last whole line; ``None`` if there is no file, or nothing whole in it."""
        if not path.exists():
            return None
        start, self._tracks, end = _scan(path)
        if start is None or not end:
            return None
        self._start = start
        file = path.open("r+b")
        file.truncate(end)
        file.seek(end)
        file.write(_END)
        file.flush()
        return file


def trace_files(path: Path) -> list[Path]:
    """The files of a trace in order: ``trace.json``, ``trace-2.json``, …; those that are there."""
    found = []
    while (file := _numbered(path, len(found) + 1)).exists():
        found.append(file)
    return found


def summarize(source: Path | Iterable[Span]) -> dict[str, TrackLoad]:
    """Work and waiting of each replica, by the name of its track in order of appearance.

    Args:
        source: the first file of a trace, whose followers are read too, or spans.
    """
    loads: dict[str, TrackLoad] = {}
    for track, seconds, waited in _file_times(source) if isinstance(source, Path) else _times(source):
        load = loads.get(track, TrackLoad())
        loads[track] = TrackLoad(load.calls + 1, load.busy_seconds + seconds, load.waiting_seconds + waited)
    return loads


def _times(spans: Iterable[Span]) -> Iterator[tuple[str, float, float]]:
    for track, _, start, end, waited, _ in spans:
        if track:
            yield track, end - start, waited


def _file_times(path: Path) -> Iterator[tuple[str, float, float]]:
    """(track, seconds of work, seconds of waiting) of each call, one line of the files at a time."""
    for file in trace_files(path):
        replicas: dict[int, str] = {}
        with file.open("rb") as lines:
            for line in lines:
                event = _event(line)
                if event.get("name") == "thread_name":
                    replicas[event["tid"]] = event["args"]["replica"]
                elif event.get("ph") == "X":
                    yield replicas[event["tid"]], event["dur"] / 1e6, event["args"]["waited"]


def _event(line: bytes) -> dict[str, Any]:
    """The event of a line; empty for brackets, and for a line that a crash left torn."""
    if not line.startswith(b'{"ph":') or not line.endswith(b"\n"):
        return {}
    return json.loads(line.rstrip(b",\n"))


def _scan(path: Path) -> tuple[float | None, dict[str, int], int]:
    """Of a file: its start (Unix seconds), its tracks, and the offset behind its last whole event."""
    tracks: dict[str, int] = {}
    end = at = 0
    with path.open("rb") as file:
        head = re.search(rb'"start_unix_seconds":([\d.]+)\}', file.readline(500))
        file.seek(0)
        for line in file:
            if line.startswith(b'{"ph":') and line.endswith(b"\n"):
                end = at + len(line.rstrip(b",\n"))
                if line.startswith(b'{"ph":"M","name":"thread_name"'):
                    event = _event(line)
                    tracks[event["args"]["name"]] = event["tid"]
            at += len(line)
    return float(head[1]) if head else None, tracks, end


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _track_name(label: str, number: int) -> str:
    names = json.dumps({"name": label, "replica": label.partition(" #")[0]})
    return f'{{"ph":"M","name":"thread_name","pid":1,"tid":{number},"args":{names}}}'


def _plain(value: Any) -> str:
    """A value as JSON, whatever it is."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'"{value}"'
    return json.dumps(value, default=str)
