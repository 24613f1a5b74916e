"""What differs from a checkpoint's list of files is told, file by file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xxhash

from chatlearn import CheckpointError
from chatlearn.checkpoint.manifest import damage, read_manifest, seal
from chatlearn.checkpoint.store import CheckpointStore, RunState
from chatlearn.checkpoint.verify import verify


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "checkpoints")
    with store.write(RunState(episode=3), {"modules": {}}) as folder:
        (folder / "policy.state.json").write_text('{"tree": {}, "tensors": {}}')
        (folder / "policy.state.rank0.safetensors").write_bytes(bytes(1000))
        (folder / "counter.files" / "inner").mkdir(parents=True)
        (folder / "counter.files" / "inner" / "own.txt").write_text("42")
    latest = store.latest()
    assert latest is not None
    return latest


def test_the_list_holds_every_file_with_length_and_checksum(checkpoint: Path) -> None:
    listed = json.loads((checkpoint / "manifest.json").read_text())
    assert listed["format"] == 2
    assert listed["files"]["counter.files/inner/own.txt"] == {
        "bytes": 2,
        "xxh3": xxhash.xxh3_64(b"42").hexdigest(),
    }
    there = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert set(listed["files"]) == there - {"manifest.json"}
    assert damage(checkpoint) == verify(checkpoint) == []


@pytest.mark.parametrize("name", ["policy.state.json", "policy.state.rank0.safetensors", "counter.files/inner/own.txt"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [("gone", "is missing"), ("cut", "is cut off or overwritten: it has"), ("flipped", "is damaged: the checksum")],
)
def test_a_damaged_file_is_named_with_what_differs(name: str, kind: str, words: str, checkpoint: Path) -> None:
    path = checkpoint / name
    data = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (problem,) = damage(checkpoint)
    assert problem.startswith(f"{path} {words}")
    assert damage(checkpoint, name.partition(".")[0]) == [problem]
    assert damage(checkpoint, "other.") == []


def test_without_reading_contents_lengths_and_json_are_compared(checkpoint: Path) -> None:
    tensors = checkpoint / "policy.state.rank0.safetensors"
    tensors.write_bytes(bytes(999) + b"\1")
    assert damage(checkpoint, deep=False) == []
    assert len(damage(checkpoint)) == 1
    structure = checkpoint / "policy.state.json"
    structure.write_text(structure.read_text().replace("{}", "[]", 1))
    assert len(damage(checkpoint, deep=False)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "manifest.json can't be read"),
        ("", "manifest.json can't be read"),
        ("[]", "manifest.json is damaged"),
        ('{"format": 2, "files": {"run.json": 5}}', "manifest.json is damaged"),
        ('{"format": 1}', "has format 1, of an older version; this version reads format 2"),
        ('{"format": 3, "files": {}}', "has format 3, of a newer or foreign version"),
    ],
)
def test_a_damaged_list_or_one_of_another_version_is_named(text: str | None, words: str, checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    assert words in verify(checkpoint)[0]
    with pytest.raises(CheckpointError, match=words):
        read_manifest(checkpoint)


def test_a_checkpoint_under_another_name_is_told(checkpoint: Path) -> None:
    renamed = checkpoint.rename(checkpoint.with_name("episode-000007"))
    assert verify(renamed) == [f"{renamed} is the checkpoint of episode 3; its folder was renamed."]


def test_files_that_are_known_already_are_not_read_again(tmp_path: Path) -> None:
    from chatlearn.checkpoint.disk import write_file

    known = {"a": write_file(tmp_path / "a", [b"abc"])}
    (tmp_path / "a").write_bytes(b"xyz")  # not what was written: only its reader would see it
    seal(tmp_path, known)
    assert damage(tmp_path)[0].startswith(f"{tmp_path / 'a'} is damaged")
