"""Files are written whole or told; what was written is known by its checksum."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash

from chatlearn import CheckpointError
from chatlearn.checkpoint import disk
from chatlearn.checkpoint.disk import Written, replace_text, sealed, write_file

CONTENT = bytes(range(256)) * 40_000  # 10 MB: more than two pieces


def test_what_was_written_is_there_and_known_by_length_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written = write_file(path, [CONTENT[:5], memoryview(CONTENT)[5:]])
    assert path.read_bytes() == CONTENT
    assert written == Written(len(CONTENT), xxhash.xxh3_64(CONTENT).hexdigest()) == sealed(path)


def test_a_system_that_takes_less_than_it_is_given_is_asked_again(tmp_path: Path, monkeypatch: Any) -> None:
    write = os.write
    monkeypatch.setattr(disk.os, "write", lambda file, data: write(file, data[:100_001]))
    write_file(tmp_path / "file", [CONTENT])
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_the_file_and_the_way_out(number: int, tmp_path: Path, monkeypatch: Any) -> None:
    def full(file: int, data: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.os, "write", full)
    with pytest.raises(CheckpointError, match=r"file can't be written: the disk is full \(.* MB free\).*max_data_ckpt"):
        write_file(tmp_path / "file", [CONTENT])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing/file can't be written: No such file"):
        write_file(tmp_path / "missing" / "file", [b"x"])


def test_the_file_and_then_its_name_are_forced_to_the_disk(tmp_path: Path, monkeypatch: Any) -> None:
    """Order of calls: write, fsync of the file and of the folder, rename, fsync of the folder."""
    calls: list[str] = []
    for name in ("write", "fsync", "rename"):
        function = getattr(os, name)
        monkeypatch.setattr(disk.os, name, lambda *args, f=function, n=name: (calls.append(n), f(*args))[1])
    replace_text(tmp_path / "latest", "episode-000001\n")
    assert calls == ["write", "fsync", "fsync", "rename", "fsync"]
    assert (tmp_path / "latest").read_text() == "episode-000001\n"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
