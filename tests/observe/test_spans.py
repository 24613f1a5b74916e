"""The trace of a run: read back as JSON, and checked by the rules of the format. That Perfetto shows it well is for
people; that it accepts the file follows from these rules.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from chatlearn.observe.spans import _QUOTED, TraceFile, TrackLoad, summarize, trace_files


def _events(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["traceEvents"]


def _slices(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Slices of each track, by the track's name."""
    events = _events(path)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[names[event["tid"]]].append(event)
    return dict(tracks)


def test_a_span_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    now, unix = time.perf_counter(), time.time()
    trace.add(
        "policy[0]", "forward_step", now, now + 0.5, 0.25, episode=3, batch=7, rows=16, note='say "hi" \n</script>'
    )
    trace.close()
    content = json.loads(path.read_text())
    (slice_,) = _slices(path)["policy[0]"]
    assert (slice_["name"], slice_["dur"]) == ("forward_step", 500_000)
    assert slice_["args"] == {"waited": 0.25, "episode": 3, "batch": 7, "rows": 16, "note": 'say "hi" \n</script>'}
    assert content["otherData"]["start_unix_seconds"] + slice_["ts"] / 1e6 == pytest.approx(unix, abs=0.1)
    begin, end = [event for event in content["traceEvents"] if event.get("cat") == "waiting"]
    assert (begin["ph"], end["ph"]) == ("b", "e")
    assert begin["name"] == end["name"] == "policy[0] waiting"
    assert begin["id"] == end["id"]
    assert end["ts"] == slice_["ts"]
    assert end["ts"] - begin["ts"] == pytest.approx(250_000, abs=0.2)


def test_the_file_is_json_after_each_flush(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    assert [event["ph"] for event in _events(path)] == ["M"]
    for episode in range(1, 4):
        trace.instant("episode", episode=episode)
        trace.add("policy[0]", "forward_step", episode, episode + 0.5)
        trace.flush()
        assert len(_slices(path)["policy[0]"]) == episode
        assert [event["args"]["episode"] for event in _events(path) if event["ph"] == "i"] == [*range(1, episode + 1)]
    trace.flush()
    assert len(_slices(path)["policy[0]"]) == 3
    assert not any(event.get("cat") == "waiting" for event in _events(path))  # nothing waited


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_odd_numbers_stay_json(value: float, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    trace = TraceFile(tmp_path / "trace.json")
    trace.add("a", "b", 0, 1, 0, odd=value, path=tmp_path, yes=True, none=None, items=[1])
    trace.close()
    content = json.loads((tmp_path / "trace.json").read_text(), parse_constant=refuse)
    args = content["traceEvents"][-1]["args"]
    assert args == {"waited": 0, "odd": str(value), "path": str(tmp_path), "yes": True, "none": None, "items": [1]}


def test_slices_of_one_track_never_overlap(tmp_path: Path) -> None:
    """A replica that runs calls side by side gets further tracks; summaries count them together."""
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    spans = [(0, 4), (1, 2), (2, 3), (1.5, 5), (4, 6), (5, 5.5)]
    for start, end in reversed(spans):  # calls are added as they end, in any order
        trace.add("policy[0]", f"{start}", start, end)
    trace.flush()
    trace.add("policy[0]", "late", 5.75, 7)  # began before the last one of the flush before has ended
    trace.close()
    tracks = _slices(path)
    assert {name: [event["name"] for event in events] for name, events in tracks.items()} == {
        "policy[0]": ["0", "4"],
        "policy[0] #2": ["1", "2", "5", "late"],
        "policy[0] #3": ["1.5"],
    }
    for events in tracks.values():
        ends = [event["ts"] + event["dur"] for event in events]
        assert all(event["ts"] >= end - 0.2 for event, end in zip(events[1:], ends, strict=False))
    assert list(summarize(path)) == ["policy[0]"]
    assert summarize(path)["policy[0]"].busy_seconds == pytest.approx(4 + 1 + 1 + 3.5 + 2 + 0.5 + 1.25)


def test_a_resumed_run_goes_on_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for part in range(3):
        trace = TraceFile(path)
        for track in (["policy[0]"], ["reward[0]", "policy[0]"], ["value[0]"])[part]:
            now = time.perf_counter()
            trace.add(track, f"part {part}", now, now + 1e-6, 1e-6)
        trace.close()
    tracks = _slices(path)
    assert {name: [event["name"] for event in events] for name, events in tracks.items()} == {
        "policy[0]": ["part 0", "part 1"],
        "reward[0]": ["part 1"],
        "value[0]": ["part 2"],
    }
    times = [event["ts"] for event in _events(path) if event["ph"] == "X"]
    assert times == sorted(times)
    waits = [event["id"] for event in _events(path) if event["ph"] == "b"]
    assert len(set(waits)) == 4


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 40, 100, 150])
def test_a_torn_file_is_mended(cut: int, tmp_path: Path) -> None:
    """A crash in the middle of a write: whole lines are kept."""
    path = tmp_path / "trace.json"
    trace = TraceFile(path)
    for index in range(3):
        trace.add("policy[0]", "forward_step", index, index + 0.5, rows=index)
    trace.close()
    path.write_bytes(path.read_bytes()[:-cut])
    summarize(path)  # reads what there is
    again = TraceFile(path)
    again.add("policy[0]", "forward_step", 10, 11, rows=10)
    again.close()
    kept = [event["args"]["rows"] for event in _slices(path)["policy[0]"]]
    assert kept[-1] == 10
    assert kept[:-1] == [0, 1, 2][: len(kept) - 1]
    assert len(kept) >= 3 - cut // 100


@pytest.mark.parametrize("text", ["", "{", "[]", "no trace at all\n" * 100])
def test_a_file_that_is_no_trace_is_replaced(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    trace = TraceFile(path)
    trace.add("policy[0]", "forward_step", 0, 1)
    trace.close()
    assert len(_slices(path)["policy[0]"]) == 1


def test_large_files_are_rotated(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = TraceFile(path, max_bytes=3000)
    for index in range(60):
        trace.add("policy[0]" if index % 2 else "reward[0]", "forward_step", index, index + 0.5, 0.25, index=index)
        trace.flush()
    trace.close()
    files = trace_files(path)
    assert [file.name for file in files[:3]] == ["trace.json", "trace-2.json", "trace-3.json"]
    assert all(file.stat().st_size < 4000 for file in files)
    found = [event["args"]["index"] for file in files for events in _slices(file).values() for event in events]
    assert sorted(found) == list(range(60))  # tracks have names in each file
    assert summarize(path) == {"reward[0]": TrackLoad(30, 15, 7.5), "policy[0]": TrackLoad(30, 15, 7.5)}
    again = TraceFile(path, max_bytes=10**6)
    again.add("value[0]", "forward_step", 60, 61)
    again.close()
    assert len(trace_files(path)) == len(files)
    assert "value[0]" in _slices(files[-1])


def test_a_summary_of_spans() -> None:
    spans = [("a", "s", 0.0, 2.0, 1.0, {}), ("", "mark", 0.0, 0.0, 0.0, {}), ("a", "s", 3.0, 3.5, 0.5, {})]
    assert summarize(spans) == {"a": TrackLoad(2, 2.5, 1.5)}


def test_threads_add_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or torn, though spans are also written when too many have gathered."""
    monkeypatch.setattr("chatlearn.observe.spans._FLUSH_AT", 97)
    trace = TraceFile(tmp_path / "trace.json")

    def work(number: int) -> None:
        for index in range(500):
            trace.add(f"policy[{number}]", "forward_step", index, index + 0.5)

    threads = [Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trace._pending) < 4 * 97
    trace.close()
    assert {load.calls for load in summarize(tmp_path / "trace.json").values()} == {500}


def test_a_kill_between_two_calls_of_the_system_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write makes the file longer by whole events, and it is JSON after each, also behind a rotation."""
    path, found = tmp_path / "trace.json", []
    write = os.pwrite

    def checked(descriptor: int, text: bytes, at: int) -> int:
        written = write(descriptor, text, at)
        found.append(sum(event["ph"] == "X" for file in trace_files(path) for event in _events(file)))
        return written

    monkeypatch.setattr(os, "pwrite", checked)
    trace = TraceFile(path, max_bytes=200_000)
    for index in range(1000):
        trace.add(f"policy[{index % 3}]", "forward_step", index, index + 0.5, 0.25, phase="train", rows=16)
    trace.close()
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == 1000
    assert len(found) > 4
    assert len(trace_files(path)) == 2


def test_a_write_that_the_system_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, text, at: write(descriptor, text[:7], at))
    trace = TraceFile(tmp_path / "trace.json")
    trace.add("policy[0]", "forward_step", 0, 1, rows=3)
    trace.close()
    assert [event["args"]["rows"] for event in _slices(tmp_path / "trace.json")["policy[0]"]] == [3]


def test_what_a_full_disk_refused_is_not_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, write = TraceFile(tmp_path / "trace.json"), os.pwrite

    def full(descriptor: int, text: bytes, at: int) -> int:
        write(descriptor, text[:9], at)
        raise OSError(28, "No space left on device")

    trace.add("policy[0]", "lost", 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            trace.flush()
    trace.add("policy[0]", "kept", 2, 3)
    trace.close()
    assert [event["name"] for event in _slices(tmp_path / "trace.json")["policy[0]"]] == ["kept"]


def test_names_and_keys_are_escaped(tmp_path: Path) -> None:
    """Also when more of them come than are remembered."""
    odd = 'a"b\\c\n\ud800é'
    trace = TraceFile(tmp_path / "trace.json")
    trace.instant(odd, **{odd: odd})
    for index in range(12_000):
        trace.add(odd, f"{odd}{index}", index, index + 0.5, 0.25, **{odd: f"{odd}{index}"})
    trace.close()
    events = _events(tmp_path / "trace.json")
    (mark,) = [event for event in events if event["ph"] == "i"]
    assert (mark["name"], mark["args"]) == (odd, {odd: odd})
    slices = _slices(tmp_path / "trace.json")[odd]
    assert [event["name"] for event in slices] == [f"{odd}{index}" for index in range(12_000)]
    assert [event["args"][odd] for event in slices] == [f"{odd}{index}" for index in range(12_000)]
    assert {event["name"] for event in events if event["ph"] == "b"} == {f"{odd} waiting"}
    assert len(_QUOTED) <= 10_000


def test_numbers_that_python_takes_for_equal_are_told_apart(tmp_path: Path) -> None:
    trace = TraceFile(tmp_path / "trace.json")
    for index, value in enumerate((1, True, 1.0, "1", 2**70)):
        trace.add("policy[0]", "forward_step", index, index + 0.5, value=value)
    trace.close()
    values = [event["args"]["value"] for event in _slices(tmp_path / "trace.json")["policy[0]"]]
    assert [(type(value), value) for value in values] == [
        (int, 1),
        (bool, True),
        (float, 1.0),
        (str, "1"),
        (int, 2**70),
    ]
