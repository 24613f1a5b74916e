"""Rows of files, read as they are asked for. A row is a dict of columns, or a text.

The objects travel between processes by the file's path; what they have read stays behind. A file has to stay as it was
when it was opened: one that is gone or has changed is an error, never a row that stood somewhere else.
"""

from __future__ import annotations

import csv
import json
import operator
import os
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chatlearn.errors import DataError
from chatlearn.guards import is_dict, is_instance, is_list

_CHUNK_BYTES = 1 << 24
_AS_IT_WAS = "Put it back as it was and go on, or start a new run; a file of prompts has to stay while a run reads it."
_OTHER_CONTENT = {
    b"\x1f\x8b": "packed with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"\xfd7zXZ": "packed with xz",
    b"PK\x03\x04": "a zip archive (or a spreadsheet)",
    b"\xff\xfe": "UTF-16, not UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8",
}
"""What a file that should hold text is, by its first bytes."""


class Rows(Sequence[Any]):
    """A sequence of rows: negative numbers, slices and NumPy's integers work as in a list."""

    @abstractmethod
    def row(self, number: int) -> Any:
        """Row ``number``, which is in range."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.row(number) for number in range(*index.indices(len(self)))]
        number = operator.index(index)
        length = len(self)
        if not -length <= number < length:
            raise IndexError(f"row {number} of {length}")
        return self.row(number % length)

    def __iter__(self) -> Iterator[Any]:
        return (self.row(number) for number in range(len(self)))


class FileRows(Rows):
    """Rows of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = _Stamp.of(os.stat(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), self.path, self.num_bytes)

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {self.path}>"

    @property
    def num_bytes(self) -> int:
        """Size of the file when it was opened."""
        return self._stamp.size

    def _check_complete(self) -> None:
        """Refuses a file that somebody writes to while it is read for the first time."""
        if _Stamp.of(os.stat(self.path)) != self._stamp:
            raise DataError(f"{self.path}: the file changes while it is read. Wait until it is written.")

    def _changed(self, stamp: _Stamp, place: str) -> DataError:
        if stamp.size != self._stamp.size:
            change = f"it had {self._stamp.size:,} bytes and has {stamp.size:,}"
        else:
            change = "it has as many bytes, but was written again"
        return DataError(f"{place}: the file has changed since it was opened ({change}). {_AS_IT_WAS}")


class _Stamp(NamedTuple):
    """What changes when a file does."""

    size: int
    written: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def _reopened(kind: type[FileRows], path: Path, size: int) -> FileRows:
    """Rows in another process; a copy of the file on another machine counts as the same."""
    try:
        rows = kind(path)
    except OSError as error:
        raise DataError(
            f"{path}: the file of prompts can't be read where this worker runs ({error.strerror or error}). Put it "
            f"where every worker finds it."
        ) from error
    if rows.num_bytes != size:
        raise DataError(
            f"{path}: the file has {rows.num_bytes:,} bytes where this worker runs, but had {size:,} when it was "
            f"opened. Put the same file where every worker finds it, and leave it as it is."
        )
    return rows


class Concatenation(Rows):
    """Several sequences of rows, one after another."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = tuple(parts)
        self._starts = [0, *accumulate(len(part) for part in self.parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, number: int) -> Any:
        part = bisect_right(self._starts, number) - 1
        return self.parts[part][number - self._starts[part]]


class TextLines(FileRows):
    """A text a line; blank lines don't count."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts, self._stops, self._blanks = _line_places(path)
        self._check_complete()

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, number: int) -> Any:
        start, stop = int(self._starts[number]), int(self._stops[number])
        try:
            with self.path.open("rb") as file:
                stamp = _Stamp.of(os.fstat(file.fileno()))
                file.seek(start)
                line = file.read(stop - start)
        except FileNotFoundError as error:
            raise DataError(f"{self._place(number)}: the file is gone since it was opened. {_AS_IT_WAS}") from error
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self._place(number)}: the file can't be read any more ({reason}).") from error
        if stamp != self._stamp:
            raise self._changed(stamp, self._place(number))
        try:
            return self.parse(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self._place(number)}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
        except _RowError as error:
            raise DataError(f"{self._place(number)}: {error}") from error

    def parse(self, line: str) -> Any:
        """A line as a row."""
        return line.rstrip("\r\n")

    def _place(self, number: int) -> str:
        """``file:line`` of a row, also of a file that is gone."""
        blank = int(np.searchsorted(self._blanks, int(self._starts[number])))
        return f"{self.path}:{number + blank + 1}"


class JsonLines(TextLines):
    """A JSON value a line: an object, a string, or a list of chat messages."""

    def parse(self, line: str) -> Any:
        try:
            return _checked_row(json.loads(line.rstrip("\r\n")))
        except (ValueError, RecursionError) as error:
            raise _RowError(f"{_bad_json(error)}. JSON Lines hold one whole record a line.") from error


class JsonList(FileRows):
    """The entries of a JSON file that holds one list."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._rows: list[Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{_place_of_bad_text(path)}: not UTF-8 ({error.reason}). Save the file as UTF-8."
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{getattr(error, 'lineno', 1)}: {_bad_json(error)}. A .json file that begins with [ holds one "
                f"list; name a file with a record a line .jsonl."
            ) from error
        self._check_complete()

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Any:
        try:
            return _checked_row(self._rows[number])
        except _RowError as error:
            raise DataError(f"{self.path}: entry {number}: {error}") from error


class CsvRows(FileRows):
    """Rows of a table in text form, whose first line names the columns; all values are text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        check_text(path)
        lines: list[list[str]] = []
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            try:
                for line in reader:
                    self._check(lines, line, reader.line_num)
                    if line:
                        lines.append(line)
            except csv.Error as error:
                raise DataError(
                    f"{path}:{reader.line_num}: bad CSV, {error}. Long texts fit JSON Lines better."
                ) from error
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{_place_of_bad_text(path)}: not UTF-8 ({error.reason}). Save the file as UTF-8."
                ) from error
        self._check_complete()
        self._columns, self._lines = (lines[0], lines[1:]) if lines else ([], [])

    def _check(self, lines: list[list[str]], line: list[str], number: int) -> None:
        if line and lines and len(line) != len(lines[0]):
            raise DataError(
                f"{self.path}:{number}: {len(line)} values for the {len(lines[0])} columns {', '.join(lines[0])}. "
                f"Quote values that hold the separator."
            )
        if not lines and len(set(line)) != len(line):
            raise DataError(f"{self.path}:{number}: a column's name stands twice in {', '.join(line)}. Rename one.")

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, number: int) -> dict[str, str]:
        return dict(zip(self._columns, self._lines[number], strict=True))


class ParquetRows(FileRows):
    """Rows of a Parquet file. The table stays in memory in Arrow's compact form from the first row on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        metadata = _parquet("read_metadata", path)
        self._length: int = metadata.num_rows
        names = metadata.schema.to_arrow_schema().names
        if len(set(names)) != len(names):
            raise DataError(f"{path}: a column's name stands twice in {', '.join(names)}. Rename one.")
        self._table: Any = None

    def __len__(self) -> int:
        return self._length

    def row(self, number: int) -> dict[str, Any]:
        if self._table is None:
            self._table = self._read(f"{self.path}: row {number}")
        return self._table.slice(number, 1).to_pylist()[0]

    def _read(self, place: str) -> Any:
        try:
            stamp = _Stamp.of(os.stat(self.path))
        except OSError as error:
            raise DataError(f"{place}: the file is gone since it was opened. {_AS_IT_WAS}") from error
        if stamp != self._stamp:
            raise self._changed(stamp, place)
        return _parquet("read_table", self.path)


class _RowError(Exception):
    """What is wrong with a row; the place is added where it is known."""


def _checked_row(row: Any) -> Any:
    if is_instance(row, (dict, str)) or (is_list(row) and row and all(is_dict(message) for message in row)):
        return row
    raise _RowError(f"a row is an object, a string or a list of chat messages, got {json.dumps(row)[:80]}.")


def _bad_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"bad JSON, {error.msg} at column {error.colno}"
    return f"bad JSON, {error}"


def _parquet(function: str, path: Path) -> Any:
    """Calls a function of ``pyarrow.parquet`` on a file."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet takes pyarrow, which is not installed. Install it with `pip install "
            f"'chatlearn[data]'`."
        ) from error
    try:
        return getattr(parquet, function)(path)
    # pyarrow carries no types
    except (pyarrow.ArrowException, OSError) as error:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        raise DataError(f"{path}: no readable Parquet file ({error}). Write it again.") from error


def check_text(path: Path) -> None:
    """Refuses a file that holds something else than UTF-8.

    Raises:
        DataError: its first bytes are those of a packed file, of Parquet or of UTF-16.
    """
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(os.fstat(file.fileno()).st_size - 4, 0))
        tail = file.read(4)
    if head[:4] == tail == b"PAR1":  # a text may begin so, but not end so too
        raise DataError(
            f"{path}: the file should hold text by its ending, but is Parquet. Name it {path.stem + '.parquet'!r}."
        )
    for magic, name in _OTHER_CONTENT.items():
        if head.startswith(magic):
            raise DataError(
                f"{path}: the file should hold text by its ending, but is {name}. Unpack or convert it, or name it by "
                f"its content."
            )


def _place_of_bad_text(path: Path) -> str:
    """``file:line`` of the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"{path}:{number}"
    return str(path)


def _line_places(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first byte of each line that is not blank, the byte behind its last, and the first byte of each blank line,
    all int64.
    """
    check_text(path)
    with path.open("rb") as file:
        start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    starts: list[np.ndarray] = []
    stops: list[np.ndarray] = []
    blanks: list[np.ndarray] = []
    for offset, lines in _whole_lines(path, start):
        array = np.frombuffer(lines, dtype=np.uint8)
        ends = np.flatnonzero(array == ord("\n")) + 1
        if len(ends) == 0 or ends[-1] != len(array):
            ends = np.append(ends, len(array))
        begins = np.concatenate([[0], ends[:-1]])
        # only a line that begins with a space can be blank; these few are looked at one by one
        suspects = np.flatnonzero(np.isin(array[begins], np.frombuffer(b" \t\r\n\v\f", dtype=np.uint8)))
        blank = [i for i in suspects if not lines[begins[i] : ends[i]].strip()]
        starts.append(np.delete(begins, blank) + offset)
        stops.append(np.delete(ends, blank) + offset)
        blanks.append(begins[blank] + offset)
    places = [np.concatenate([np.empty(0, dtype=np.int64), *parts]) for parts in (starts, stops, blanks)]
    return places[0], places[1], places[2]


def _whole_lines(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """The file from byte ``start`` on in pieces that end with a line: (offset, bytes)."""
    with path.open("rb") as file:
        file.seek(start)
        rest = b""
        while chunk := file.read(_CHUNK_BYTES):
            piece = rest + chunk
            cut = piece.rfind(b"\n") + 1
            if cut:
                yield start, piece[:cut]
                start += cut
            rest = piece[cut:]
        if rest:
            yield start, rest
