"""What each replica did when: a trace in Chrome's event format, which Perfetto (https://ui.perfetto.dev) opens.

A replica has one track. The wait of a call before its work has a track of its own ("policy[0] waiting"), of async
slices, since it overlaps with the work of the call before, and with other waits.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from operator import itemgetter
from pathlib import Path
from typing import Any

from chatlearn.guards import kind_of

_END = b"\n]}\n"
_FLUSH_AT = 50_000
"""Spans kept in memory at most, however long an episode is."""

_SPANS_PER_WRITE = 250
"""About 100 kB: larger texts cost more by the byte, since their memory is new each time."""

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


class _Lane:
    """A track of the trace: when its last slice ends, and what all events of it begin with."""

    __slots__ = ("end", "head", "wait_head")

    def __init__(self, end: float, tid: int, track: str) -> None:
        self.end = end
        self.head = f'{{"ph":"X","cat":"work","pid":1,"tid":{tid},"name":'
        self.wait_head = f'"cat":"waiting","pid":1,"tid":0,"name":{json.dumps(f"{track} waiting")},"id":"0x'


class _Quoted(dict[str, str]):
    """Texts in the form of JSON, each escaped once."""

    def __missing__(self, text: str) -> str:
        if len(self) >= 10_000:  # texts that come once only must not gather
            self.clear()
        quoted = self[text] = json.dumps(text)
        return quoted


_QUOTED = _Quoted()


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
        self._tracks: dict[str, int] = {}  # number of each, from 1 on
        self._num_named = 0  # tracks whose name stands in the file
        self._lanes: dict[str, list[_Lane]] = {}
        self._number = len(trace_files(path)) or 1
        self._start = now = time.time()
        self._size = 0
        self._file = self._reopen(_numbered(path, self._number)) or self._create()
        self._num_named = len(self._tracks)
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
            spans.sort(key=itemgetter(2))
            for first in range(0, len(spans), _SPANS_PER_WRITE):
                if self._size > self._max_bytes:
                    self._rotate()
                events = self._format(spans[first : first + _SPANS_PER_WRITE])
                names = [_track_name(label, tid) for label, tid in self._tracks.items() if tid > self._num_named]
                self._write([*names, *events])
                self._num_named = len(self._tracks)

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        self._file.close()

    def _format(self, spans: Iterable[Span]) -> list[str]:
        """The events of spans, one a line. This is the hot path, so names are looked up once and escaped once."""
        lines: list[str] = []
        add, lanes, clock = lines.append, self._lanes, self._clock
        for track, name, start, end, waited, args in spans:
            at = (start + clock) * 1e6
            when = f"{at:.1f}"
            more = ""
            for key, value in args.items():
                kind = kind_of(value)
                text = value if kind is int else _QUOTED[value] if kind is str else _plain(value)
                more = f"{more},{_QUOTED[key]}:{text}"
            if not track:
                add(f'{{"ph":"i","s":"g","pid":1,"tid":0,"name":{_QUOTED[name]},"ts":{when},"args":{{{more[1:]}}}}}')
                continue
            of_track = lanes.get(track)
            lane = of_track[0] if of_track and of_track[0].end <= start else self._free_lane(track, start)
            lane.end = end
            work = (
                f'{lane.head}{_QUOTED[name]},"ts":{when},"dur":{(end - start) * 1e6:.1f},'
                f'"args":{{"waited":{waited:.7f}{more}}}}}'
            )
            if waited <= 0:
                add(work)
                continue
            # an async slice that ends where the work begins
            self._wait_id += 1
            wait = f'{lane.wait_head}{self._wait_id:x}","ts":'
            add(f'{work},\n{{"ph":"b",{wait}{at - waited * 1e6:.1f}}},\n{{"ph":"e",{wait}{when}}}')
        return lines

    def _free_lane(self, track: str, start: float) -> _Lane:
        """Slices of one track must not overlap, so a replica that runs calls side by side gets further tracks."""
        lanes = self._lanes.setdefault(track, [])
        for lane in lanes:
            if lane.end <= start:
                return lane
        label = track if not lanes else f"{track} #{len(lanes) + 1}"
        lanes.append(_Lane(start, self._tracks.setdefault(label, len(self._tracks) + 1), track))
        return lanes[-1]

    def _write(self, events: Sequence[str]) -> None:
        """Puts events before the closing brackets, in one call of the system: before and after it the file is whole."""
        self._put(",\n".join(["", *events]).encode() + _END, self._size - len(_END))

    def _put(self, text: bytes, at: int) -> None:
        descriptor = self._file.fileno()
        while text:
            written = os.pwrite(descriptor, text, at)
            text, at = text[written:], at + written
        self._size = at

    def _create(self) -> FileIO:
        """Begins a file, with the names of the tracks that there are."""
        head = f'{{"displayTimeUnit":"ms","otherData":{{"start_unix_seconds":{self._start!r}}},"traceEvents":[\n'
        process = f'{{"ph":"M","name":"process_name","pid":1,"args":{{"name":{json.dumps(self._process)}}}}}'
        names = [_track_name(label, number) for label, number in self._tracks.items()]
        self._file = FileIO(_numbered(self._path, self._number), "w")
        self._put(head.encode() + ",\n".join([process, *names]).encode() + _END, 0)
        return self._file

    def _rotate(self) -> None:
        self._file.close()
        self._number += 1
        self._file = self._create()

    def _reopen(self, path: Path) -> FileIO | None:
        """Goes on in a file, behind its last whole line; ``None`` if there is no file, or nothing whole in it."""
        if not path.exists():
            return None
        start, self._tracks, end = _scan(path)
        if start is None or not end:
            return None
        self._start = start
        self._file = FileIO(path, "r+")
        self._put(_END, end)
        self._file.truncate(self._size)
        return self._file


def trace_files(path: Path) -> list[Path]:
    """The files of a trace in order: ``trace.json``, ``trace-2.json``, …; those that are there."""
    found: list[Path] = []
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
