"""What a user gives as prompts: sequences as they are, files by their ending."""

from __future__ import annotations

import difflib
import glob
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chatlearn.data.files import Concatenation, CsvRows, JsonLines, JsonList, ParquetRows, TextLines, check_text
from chatlearn.errors import DataError
from chatlearn.guards import is_mapping, is_sequence


def read_prompts(source: Any) -> Sequence[Any]:
    """Prompts as a sequence.

    Args:
        source: a sequence or a map-style data set (with ``__len__`` and ``__getitem__``, as a Hugging Face
            ``Dataset``), which is returned itself; or a ``str`` or ``Path`` that names a file, a folder, or files with
            ``*``, ``?`` and ``**``; or a list or tuple of ``Path``. A list of ``str`` is prompts, never files.

    Returns:
        The sequence. Rows of files are dicts of columns, or texts; they are read as they are asked for.

    Raises:
        DataError: it is none of these, a file is missing, empty or malformed (``file:line`` where there are lines).
    """
    if isinstance(source, (str, Path)):
        given = f"prompts themselves are given as a list: [{str(source)[:60]!r}]"
        return read_file(source, f"A str or Path names a file of prompts; {given}.")
    if is_sequence(source) and any(isinstance(entry, Path) for entry in source):
        if odd := next((entry for entry in source if not isinstance(entry, Path)), None):
            raise DataError(
                f"the prompts are a list of paths with {odd!r} in it. Give paths only (pathlib.Path), or prompts only."
            )
        return _read_files([file for path in source for file in _files(path, "Give the path of a file of prompts.")])
    _check_sequence(source)
    return source


def read_file(source: str | Path, hint: str) -> Sequence[Any]:
    """Prompts of a file, a folder, or files with ``*``, ``?`` and ``**``, as a sequence.

    Args:
        source: its path.
        hint: what to do where there is none, for the error.

    Raises:
        DataError: the file is missing, empty or malformed (``file:line`` where there are lines).
    """
    return _read_files(_files(source, hint))


def _read_json(path: Path) -> Sequence[Any]:
    """JSON Lines, or one list over the whole file."""
    check_text(path)
    with path.open("rb") as file:
        is_list = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return JsonList(path) if is_list else JsonLines(path)


READERS: dict[str, Callable[[Path], Sequence[Any]]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": _read_json,
    ".parquet": ParquetRows,
    ".csv": CsvRows,
    ".tsv": CsvRows,
    ".txt": TextLines,
}
"""Readers of files, by ending."""

PACKED = {".gz": "gunzip -k", ".zst": "unzstd", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zip": "unzip"}
"""Endings of packed files, and the command that unpacks them."""


def _read_files(files: Sequence[Path]) -> Sequence[Any]:
    parts = [_read_file(file) for file in files]
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def _read_file(path: Path) -> Sequence[Any]:
    if command := PACKED.get(path.suffix.lower()):
        raise DataError(
            f"{path}: the file is packed. Prompts are read at their places in a file, in any order, so it has to be "
            f"plain. Unpack it first: {command} {shlex.quote(str(path))}"
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: the ending {path.suffix!r} is not known. Prompts are read from files that end with "
            f"{', '.join(READERS)}; data in other forms can be given as a list or a data set."
        )
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: this is no regular file. Write its content to one first.")
    try:
        rows = reader(path)
    except OSError as error:
        raise DataError(f"{path}: the file can't be read ({error.strerror or error}).") from error
    if len(rows) == 0:
        raise DataError(f"{path}: the file holds no prompts. Give a file with at least one.")
    rows[0]  # a file of another form than its ending says is told at once
    return rows


def _files(source: str | Path, hint: str) -> list[Path]:
    """The files that a path, a folder or a pattern stands for, sorted by name."""
    if not str(source).strip():
        raise DataError("the prompts are an empty text. Give a list of prompts, or the path of a file.")
    path = Path(source).expanduser().absolute()
    if os.path.isdir(path):  # unlike Path's methods, these take a name that is too long for no file
        return _files_in(path)
    if os.path.exists(path):
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if files := [file for file in found if not file.is_dir()]:
        return files
    what = "no file matches" if glob.has_magic(str(source)) else "there is no file"
    raise DataError(f"{what} {str(path)!r}.{_nearest(path)} {hint}")


def _files_in(folder: Path) -> list[Path]:
    """The files of prompts in a folder itself, hidden ones apart; packed ones too, so that none is left out unsaid."""
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if not path.is_dir()]
    if prompts := [path for path in files if _holds_prompts(path)]:
        return prompts
    subfolders = [path.name for path in visible if path.is_dir()]
    deeper = f" It has subfolders: {str(folder / '**' / '*.jsonl')!r} goes through them all." if subfolders else ""
    raise DataError(f"{folder}: the folder holds no files that end with {', '.join(READERS)}.{deeper}")


def _holds_prompts(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower() in READERS


def _nearest(path: Path) -> str:
    """A hint at the most similar name in the folder, empty without one."""
    names = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    similar = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {similar[0]!r}?" if similar else ""


def _check_sequence(source: Any) -> None:
    kind = type(source).__name__
    if is_mapping(source):
        names = ", ".join(map(str, source))
        hint = f"Choose one, such as data[{next(iter(source), 'train')!r}]."
        what = "splits" if kind in ("DatasetDict", "IterableDatasetDict") else "keys"
        raise DataError(f"the prompts are a {kind} with the {what} {names}. {hint}")
    if hasattr(source, "iloc"):
        raise DataError(
            f'the prompts are a {kind} of pandas. Give its rows as a list: data.to_dict("records"), or one column: '
            f"column.tolist()."
        )
    if hasattr(source, "to_pylist"):
        raise DataError("the prompts are a table of Arrow. Give its rows: data.to_pylist().")
    if hasattr(source, "__iter__") and not hasattr(source, "__len__"):
        example = "list(data.take(10_000))" if hasattr(source, "take") else "list(data)"
        raise DataError(
            f"the prompts are a {kind}, which has no length, so they can't be shuffled or resumed. Give a sequence, "
            f"such as {example}."
        )
    if isinstance(source, (bytes, set, frozenset)) or not (
        hasattr(source, "__len__") and hasattr(source, "__getitem__")
    ):
        raise DataError(
            f"the prompts are {'an' if kind[0] in 'aeiou' else 'a'} {kind}. Give a list, a data set with __len__ and "
            f"__getitem__, or the path of a file."
        )
