"""Files of prompts that are odd, that change under a run, and that come in numbers."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from chatlearn.data import files
from chatlearn.data.prompts import fetch, open_dataset
from chatlearn.data.sources import read_prompts
from chatlearn.errors import DataError

LINES = ['{"prompt": "a"}', "", '{"prompt": "b"}', "  ", '{"prompt": "c"}']
"""Records on the lines 1, 3 and 5."""


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write(tmp_path / "p.jsonl", "\n".join(LINES))


def later(path: Path) -> None:
    """As if the file had been written a second later; clocks of file systems tick slowly."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


# ------------------------------------------------------------------------------------- files that change under a run


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    write(path, "\n".join(LINES[:1]))


def append(path: Path) -> None:
    write(path, "\n".join([*LINES, '{"prompt": "d"}']))


def rewrite(path: Path) -> None:
    """As many bytes, other rows."""
    write(path, "\n".join(reversed(LINES)))
    later(path)


def replace(path: Path) -> None:
    """Another file under the name, of the same size and time."""
    other = write(path.with_name("other"), "\n".join(reversed(LINES)))
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES = {
    delete: "the file is gone since it was opened",
    truncate: r"the file has changed since it was opened \(it had 51 bytes and has 15\)",
    append: r"the file has changed since it was opened \(it had 51 bytes and has 67\)",
    rewrite: r"the file has changed since it was opened \(it has as many bytes, but was written again\)",
    replace: r"the file has changed since it was opened \(it has as many bytes, but was written again\)",
}


@pytest.mark.parametrize(("change", "words"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_file_of_lines_that_changes_is_told_with_the_line(lines: Path, change: Any, words: str) -> None:
    rows = read_prompts(lines)
    assert rows[1] == {"prompt": "b"}
    change(lines)
    for number, line in enumerate((1, 3, 5)):
        with pytest.raises(DataError, match=rf"p\.jsonl:{line}: {words}\. Put it back as it was and go on, or start"):
            rows[number]


def test_a_file_that_became_a_folder(lines: Path) -> None:
    rows = read_prompts(lines)
    make_folder(lines)
    with pytest.raises(DataError, match=r"p\.jsonl:3: the file can't be read any more \(Is a directory\)"):
        rows[1]


def test_a_file_that_is_put_back_as_it_was_goes_on(lines: Path) -> None:
    rows = read_prompts(lines)
    aside = lines.rename(lines.with_name("aside"))
    with pytest.raises(DataError, match="is gone"):
        rows[0]
    aside.rename(lines)
    assert list(rows) == [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]


def test_the_number_of_the_sample_stands_before_the_place(lines: Path) -> None:
    dataset = open_dataset(None, read_prompts(lines), is_eval=False)
    lines.unlink()
    with pytest.raises(DataError, match=r"^sample 2 of the data set can't be read: .*p\.jsonl:5: the file is gone"):
        fetch(dataset, [2])


@pytest.mark.parametrize("name", ["p.csv", "p.json", "p.parquet"])
def test_a_file_that_was_read_whole_may_go(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "p.csv":
        write(path, "prompt\na\nb\n")
    elif name == "p.json":
        write(path, '[{"prompt": "a"}, {"prompt": "b"}]')
    else:
        parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), path)
    rows = read_prompts(path)
    path.unlink()
    assert list(rows) == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize(("change", "words"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_parquet_file_that_changes_before_it_is_read(tmp_path: Path, lines: Path, change: Any, words: str) -> None:
    """Its rows are read with the first of them that is asked for."""
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), path)
    rows = files.ParquetRows(path)
    change(path)
    with pytest.raises(DataError, match=rf"p\.parquet: row 1: {words.partition(' since')[0]}"):
        rows[1]


def test_a_parquet_file_whose_pages_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": [f"prompt {n}" for n in range(999)]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.parquet: no readable Parquet file \(.*\)\. Write it again"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.json"])
def test_a_file_that_is_still_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Somebody adds to it while it is read."""
    path = write(tmp_path / name, '["a"]' if name == "p.json" else LINES[0] + "\n")
    owner, function = (json, "loads") if name == "p.json" else (files, "check_text")
    original = getattr(owner, function)

    def append_too(argument: Any) -> Any:
        with path.open("a") as file:
            file.write(LINES[2])
        return original(argument)

    monkeypatch.setattr(owner, function, append_too)
    with pytest.raises(DataError, match=rf"{name}: the file changes while it is read\. Wait until it is written"):
        read_prompts(path)


# ------------------------------------------------------------------------------------------------ other processes


def test_another_process_finds_no_file(lines: Path) -> None:
    sent = pickle.dumps(read_prompts(lines))
    lines.unlink()
    with pytest.raises(DataError, match=r"p\.jsonl: .* can't be read where this worker runs \(No such file"):
        pickle.loads(sent)


def test_another_process_finds_another_file(lines: Path) -> None:
    sent = pickle.dumps(read_prompts(lines))
    append(lines)
    with pytest.raises(DataError, match=r"has 67 bytes where this worker runs, but had 51 when it was opened"):
        pickle.loads(sent)


def test_a_copy_of_the_file_on_another_machine_counts_as_the_same(lines: Path) -> None:
    sent = pickle.dumps(read_prompts(lines))
    content = lines.read_bytes()
    lines.unlink()
    write(lines, content)
    later(lines)
    assert pickle.loads(sent)[2] == {"prompt": "c"}


# ---------------------------------------------------------------------------------------------------- odd files


def test_a_last_line_without_an_end_counts(tmp_path: Path) -> None:
    assert list(read_prompts(write(tmp_path / "p.txt", "a\nb"))) == ["a", "b"]
    assert list(read_prompts(write(tmp_path / "p.csv", "x,y\n1,2\n3,4"))) == [
        {"x": "1", "y": "2"},
        {"x": "3", "y": "4"},
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_with_a_byte_order_mark_empty_lines_and_either_line_end(tmp_path: Path, end: str) -> None:
    text = "\ufeff" + end.join(["prompt,answer", "", '"a, b",1', "", "ç,2", ""])
    rows = [{"prompt": "a, b", "answer": "1"}, {"prompt": "ç", "answer": "2"}]
    assert list(read_prompts(write(tmp_path / "p.csv", text))) == rows
    assert list(read_prompts(write(tmp_path / "p.tsv", text.replace(",", "\t").replace("\t ", ", ")))) == rows


def test_a_list_in_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert list(read_prompts(write(tmp_path / "p.json", '\ufeff\r\n[{"a": 1}]\r\n'))) == [{"a": 1}]


@pytest.mark.parametrize("record", ["null", "3.5", "true", "[]", "[1, 2]", '["a"]'])
def test_a_record_that_is_no_object_text_or_conversation(tmp_path: Path, record: str) -> None:
    rows = read_prompts(write(tmp_path / "p.jsonl", f'{{"a": 1}}\n\n{record}\n'))
    with pytest.raises(DataError) as caught:
        rows[1]
    place = f"{tmp_path / 'p.jsonl'}:3: "
    assert str(caught.value) == f"{place}a row is an object, a string or a list of chat messages, got {record}."
    listed = read_prompts(write(tmp_path / "p.json", f'[{{"a": 1}}, {record}]'))
    with pytest.raises(DataError, match=r"p\.json: entry 1: a row is an object"):
        listed[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"a": 1', r"p\.jsonl:3: bad JSON, Expecting ',' delimiter at column 8"),
        ('{"a": 1} {"a": 2}', r"p\.jsonl:3: bad JSON, Extra data at column 10"),
        ("{'a': 1}", r"p\.jsonl:3: bad JSON, Expecting property name enclosed in double quotes at column 2"),
        ('{"a": "b\tc"}', r"p\.jsonl:3: bad JSON, Invalid control character at at column 9"),
    ],
)
def test_a_broken_line_behind_a_blank_one_has_its_own_number(tmp_path: Path, line: str, words: str) -> None:
    rows = read_prompts(write(tmp_path / "p.jsonl", f'{{"a": 1}}\n\n{line}\n{{"a": 2}}'))
    with pytest.raises(DataError, match=words):
        rows[1]
    assert rows[2] == {"a": 2}


def test_a_row_of_a_table_that_is_too_short_is_told_with_its_line(tmp_path: Path) -> None:
    """Values may hold line ends: the fourth line is in the middle of the second row."""
    text = 'prompt,answer\n"one\nline",1\n"two\nlines",2,3\n'
    with pytest.raises(DataError, match=r"p\.csv:5: 3 values for the 2 columns prompt, answer\. Quote values"):
        read_prompts(write(tmp_path / "p.csv", text))


def test_nested_columns_of_parquet_are_dicts_and_lists(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "x"}], "meta": {"tags": ["a", None], "at": {"n": 1}}, "raw": b"\x00"},
        {"prompt": [], "meta": {"tags": [], "at": None}, "raw": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert list(read_prompts(tmp_path / "p.parquet")) == rows


def test_a_parquet_file_with_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["x", "x"])
    parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet: a column's name stands twice in x, x"):
        read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.json", "p.txt"])
def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The answer of the system is played, since root may read everything."""

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    path = write(tmp_path / name, "x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=rf"{name}: the file can't be read \(Permission denied\)"):
        read_prompts(path)


def test_a_file_whose_permission_is_taken_under_a_run(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    rows = read_prompts(lines)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"p\.jsonl:5: the file can't be read any more \(Permission denied\)"):
        rows[2]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match=r"p\.jsonl: this is no regular file\. Write its content to one first"):
        read_prompts(tmp_path / "p.jsonl")


# ------------------------------------------------------------------------------------------------ several files


def test_subfolders_and_hidden_files_of_a_folder_do_not_count(tmp_path: Path, lines: Path) -> None:
    (tmp_path / "sub.jsonl").mkdir()
    write(tmp_path / "sub.jsonl" / "inner.jsonl", '{"prompt": "inner"}')
    write(tmp_path / ".p.jsonl", "half written")
    for source in (tmp_path, str(tmp_path / "*.jsonl")):
        assert [row["prompt"] for row in read_prompts(source)] == ["a", "b", "c"]
    assert [row["prompt"] for row in read_prompts(str(tmp_path / "**" / "*.jsonl"))] == ["a", "b", "c", "inner"]


def test_a_folder_whose_name_ends_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "parts.jsonl").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / "parts.jsonl" / name, json.dumps({"prompt": name}))
    assert [row["prompt"] for row in read_prompts(tmp_path / "parts.jsonl")] == ["a.jsonl", "b.jsonl"]


def test_a_folder_with_subfolders_only_says_how_to_go_through_them(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "p.jsonl", LINES[0])
    with pytest.raises(DataError) as caught:
        read_prompts(tmp_path)
    assert f"It has subfolders: '{tmp_path}/**/*.jsonl' goes through them all." in str(caught.value)
    assert len(read_prompts(f"{tmp_path}/**/*.jsonl")) == 1


def test_a_packed_file_in_a_folder_is_not_left_out_in_silence(tmp_path: Path, lines: Path) -> None:
    write(tmp_path / "q.jsonl.gz", gzip.compress(b'{"prompt": "d"}\n'))
    with pytest.raises(DataError, match=r"q\.jsonl\.gz: the file is packed.*gunzip -k"):
        read_prompts(tmp_path)


def test_a_link_to_nothing_is_not_left_out_in_silence(tmp_path: Path, lines: Path) -> None:
    (tmp_path / "q.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for source in (tmp_path, str(tmp_path / "*.jsonl")):
        with pytest.raises(DataError, match=r"q\.jsonl: the file can't be read \(No such file"):
            read_prompts(source)


def test_one_bad_file_of_several_is_named(tmp_path: Path, lines: Path) -> None:
    write(tmp_path / "q.jsonl", "")
    with pytest.raises(DataError, match=r"q\.jsonl: the file holds no prompts"):
        read_prompts([lines, tmp_path / "q.jsonl"])


def test_rows_of_several_files_keep_their_places_in_errors(tmp_path: Path, lines: Path) -> None:
    other = write(tmp_path / "q.jsonl", '"x"\n\n"y"\n')
    rows = read_prompts(str(tmp_path / "*.jsonl"))
    other.unlink()
    assert rows[2] == {"prompt": "c"}
    with pytest.raises(DataError, match=r"q\.jsonl:3: the file is gone"):
        rows[4]


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_text_names_no_folder(source: str) -> None:
    with pytest.raises(DataError, match="the prompts are an empty text"):
        read_prompts(source)
