"""The list of a checkpoint's files, written last: a folder without it is no checkpoint, and what differs is damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from chatlearn.checkpoint.disk import Written, read_json, sealed, sync_all, write_json
from chatlearn.errors import CheckpointError

NAME = "manifest.json"
FORMAT = 2


def seal(folder: Path, known: Mapping[str, Written]) -> None:
    """Lists all files of a folder and forces it to the disk, with all that it holds.

    Args:
        folder: complete but for the list.
        known: files whose contents are known, by their paths in the folder; others are read. All but ``run.json`` are
            on the disk already.

    Raises:
        CheckpointError: a file can't be read or written.
    """
    files = {name: known.get(name) or sealed(folder / name) for name in _names(folder)}
    content = {"format": FORMAT, "files": {name: _entry(file) for name, file in files.items()}}
    write_json(folder / NAME, content, sync=False)
    inner = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    sync_all(*(path for path in (folder / "run.json", folder / NAME) if path.exists()), *inner, folder)


def is_complete(folder: Path) -> bool:
    """Whether the list is there."""
    return (folder / NAME).is_file()


def read_manifest(folder: Path) -> dict[str, Written]:
    """The files that a checkpoint is made of, by their paths in it.

    Raises:
        CheckpointError: there is no list, it is damaged, or of another version's format.
    """
    content = read_json(folder / NAME)
    try:
        found = content["format"]
        if found == FORMAT:
            if outside := [
                name for name in content["files"] if PurePath(name).is_absolute() or ".." in PurePath(name).parts
            ]:
                raise CheckpointError(f"{folder / NAME} is damaged: it names {outside[0]}, which is outside.")
            return {name: Written(int(e["bytes"]), str(e["xxh3"])) for name, e in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / NAME} is damaged: it is no list of files ({error!r}).") from error
    raise other_format(folder, found)


def other_format(folder: Path, found: Any) -> CheckpointError:
    """What to say of a checkpoint that another version has written."""
    age = "an older" if isinstance(found, int) and found < FORMAT else "a newer or foreign"
    return CheckpointError(
        f"{folder} has format {found!r}, of {age} version; this version reads format {FORMAT}. Resume with the version "
        f"of chatlearn that wrote it, or start a new run."
    )


def damage(folder: Path, prefix: str = "", *, deep: bool = True) -> list[str]:
    """What differs from the list.

    Args:
        folder: of the checkpoint.
        prefix: only of files whose paths in it begin so.
        deep: read and compare contents of all files; else of JSON files only, and the lengths of the others.

    Returns:
        One line for each problem, which names the file; empty if there is none.
    """
    try:
        if not is_complete(folder) and (found := _format_without(folder)) is not None:
            raise other_format(folder, found)
        listed = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    problems = [_difference(folder / name, file, deep) for name, file in listed.items() if name.startswith(prefix)]
    return [problem for problem in problems if problem]


def _format_without(folder: Path) -> Any:
    """The format of a version that wrote no list; ``None`` if that is not why there is none."""
    try:
        found: Any = read_json(folder / "run.json")["format"]
    except (CheckpointError, KeyError, TypeError):
        return None
    return None if found == FORMAT else found


def _difference(path: Path, listed: Written, deep: bool) -> str:
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path} is missing." if isinstance(error, FileNotFoundError) else f"{path} can't be read: {error}."
    if not path.is_file():
        return f"{path} is no file."
    if size != listed.nbytes:
        return f"{path} is cut off or overwritten: it has {size:,} bytes instead of {listed.nbytes:,}."
    if deep or path.suffix == ".json":
        try:
            found = sealed(path, sync=False)
        except CheckpointError as error:
            return str(error)
        if found.digest != listed.digest:
            return f"{path} is damaged: the checksum of its bytes is {found.digest} instead of {listed.digest}."
    return ""


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / NAME:
            yield path.relative_to(folder).as_posix()


def _entry(file: Written) -> dict[str, Any]:
    return {"bytes": file.nbytes, "xxh3": file.digest}
