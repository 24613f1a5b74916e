"""A checkpoint that is interrupted at a call of the operating system leaves the old or the new one, exactly.

``crash_points.py`` goes through all calls of all variants; here it is a part of the calls of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import crash_points
import pytest
from disk_calls import Call
from disk_model import Disk
from kill_children import pool

STRIDE = 89


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """What runs are forked from."""
    with pool(1) as processes:
        yield processes


ORIGINS = {
    "first": {"the beginning", "episode-000001"},
    "second": {"episode-000001", "episode-000002"},
    "pruning": {"episode-000001", "episode-000002"},
    "best": {"episode-000001", "episode-000002"},
    "last": {"episode-000002", "episode-000003"},
    "replacing": {"episode-000001", "episode-000002"},
    "recovery": {"episode-000001"},
}
"""What a run goes on from: the old checkpoint where the new one was interrupted early, the new one where late."""


@pytest.mark.parametrize(
    ("variant", "async_save"), [(name, number % 2 == 1) for number, name in enumerate(ORIGINS)], ids=list(ORIGINS)
)
def test_the_old_or_the_new_checkpoint_loads_exactly_wherever_it_is_interrupted(
    variant: str, async_save: bool, processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    case = processes.submit(crash_points.prepared, variant, async_save, tmp_path).result()
    renames = [number for number, call in enumerate(case.calls) if call.function == "rename"]
    around = {number + step for number in renames for step in (0, 1)} | {len(case.calls) - 1}
    points = sorted({*case.points[::STRIDE], *((number, False) for number in around if number < len(case.calls))})
    told = list(processes.map(crash_points.crashed, repeat(case), points))
    assert [each for each in told if each.problems] == []
    assert {each.origin for each in told} - {"was not reached"} == ORIGINS[variant]


def test_the_old_or_the_new_checkpoint_loads_exactly_whenever_the_power_fails(
    processes: ProcessPoolExecutor, tmp_path: Path
) -> None:
    case = processes.submit(crash_points.prepared, "pruning", False, tmp_path).result()
    told = processes.submit(crash_points.powerless, case, 3).result()
    assert [each for each in told if each.problems] == []
    assert {each.origin for each in told} == ORIGINS["pruning"]


def test_what_was_not_forced_to_the_disk_is_lost_with_the_power(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    disk = Disk(tmp_path)

    def write(path: str, data: bytes) -> None:
        (tmp_path / path).write_bytes(data)

    disk.handle(Call("write", "a", lambda: write("a", b"new")))
    disk.handle(Call("rename", "a", lambda: os.rename(tmp_path / "a", tmp_path / "old"), "old"))
    trees = [tree for _, _, tree in disk.states]
    assert trees == [{"old": b"old"}, {"a": b"", "old": b"old"}, {"old": b""}]
    disk.handle(Call("fsync", "old", lambda: None))
    assert [tree for _, _, tree in disk.states[3:]] == [{"old": b"new"}, {"a": b"new", "old": b"old"}]
    disk.handle(Call("fsync", ".", lambda: None))
    disk.handle(Call("unlink", "old", lambda: (tmp_path / "old").unlink()))
    assert [tree for _, _, tree in disk.states[5:]] == [{}]


def test_any_one_change_of_names_may_get_to_the_disk_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(b"1")
    disk = Disk(tmp_path)
    disk.handle(Call("mkdir", "2", lambda: (tmp_path / "2").mkdir()))
    disk.handle(Call("open", "aside", lambda: (tmp_path / "aside").write_bytes(b"2"), creates=True))
    disk.handle(Call("fsync", "aside", lambda: None))
    disk.handle(Call("rename", "aside", lambda: os.rename(tmp_path / "aside", tmp_path / "latest"), "latest"))
    assert {"latest": b"2"} in [tree for _, _, tree in disk.states]  # it names what is not there


def test_a_write_that_goes_past_the_patched_functions_is_noticed(tmp_path: Path) -> None:
    """In a process of its own, since the functions stay patched."""
    program = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from disk_calls import DiskCalls
seen = []
disk = DiskCalls(Path({str(tmp_path)!r}), lambda call: (seen.append(str(call)), call.do())[1])
file = os.open({str(tmp_path / "good")!r}, os.O_WRONLY | os.O_CREAT)
os.write(file, b"good")
os.fsync(file)
os.close(file)
Path({str(tmp_path / "bad")!r}).write_text("bad")
Path({str(tmp_path / "bad")!r}).rename({str(tmp_path / "other")!r})
print(seen, disk.past)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "['open good', 'write good', 'fsync good', 'close good', 'rename bad -> other'] ['open bad']"
    )
