"""Prompts from sequences, data sets and files."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatlearn.data import files
from chatlearn.data.sources import read_prompts
from chatlearn.errors import DataError

ROWS = [{"prompt": f"täst {i}\n", "answer": i} for i in range(7)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_parquet(rows: list[Any], path: Path, **options: Any) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# -------------------------------------------------------------------------------------- sequences and data sets


@pytest.mark.parametrize("prompts", [["a", "b"], ("a",), [{"prompt": "a"}], range(3), np.arange(4), []])
def test_sequences_are_returned_themselves(prompts: Any) -> None:
    assert read_prompts(prompts) is prompts


def test_a_list_of_strings_is_prompts_even_if_they_name_files(tmp_path: Path) -> None:
    prompts = [str(write(tmp_path / "a.txt", "x\n"))]
    assert read_prompts(prompts) is prompts


def test_a_data_set_of_hugging_face_is_returned_itself() -> None:
    data = datasets.Dataset.from_list(ROWS)
    assert read_prompts(data) is data


def test_several_splits_have_to_be_chosen_from() -> None:
    data = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    with pytest.raises(DataError, match=r"DatasetDict with the splits train, test.*data\['train'\]"):
        read_prompts(data)


def test_a_stream_of_hugging_face_has_no_length() -> None:
    with pytest.raises(DataError, match=r"IterableDataset, which has no length.*list\(data\.take"):
        read_prompts(datasets.Dataset.from_list(ROWS).to_iterable_dataset())


def test_tables_of_pandas_and_arrow_are_no_sequences_of_rows() -> None:
    with pytest.raises(DataError, match=r"DataFrame of pandas.*to_dict"):
        read_prompts(pandas.DataFrame(ROWS))
    with pytest.raises(DataError, match="to_pylist"):
        read_prompts(pyarrow.Table.from_pylist(ROWS))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (iter(["a"]), r"list_iterator, which has no length.*list\(data\)"),
        ({"train": ["a"]}, r"a dict with the keys train.*data\['train'\]"),
        (7, "the prompts are an int. Give a list"),
        (None, "the prompts are a NoneType"),
        (b"abc", "the prompts are a bytes"),
        ({"a"}, "the prompts are a set"),
        ([Path("a.txt"), "b"], "a list of paths with 'b' in it"),
    ],
)
def test_what_is_no_source(source: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_prompts(source)


# -------------------------------------------------------------------------------------------------------- files


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", json_lines(ROWS))
    rows = read_prompts(str(path))
    assert (len(rows), list(rows)) == (7, ROWS)
    assert (rows[-1], rows[np.int64(2)], rows[1:3]) == (ROWS[6], ROWS[2], ROWS[1:3])
    for index in (7, -8):
        with pytest.raises(IndexError):
            rows[index]


@pytest.mark.parametrize("chunk", [1, 3, 16, 1 << 24])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_in_any_chunks_with_blank_ones_and_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, end: str
) -> None:
    monkeypatch.setattr(files, "_CHUNK_BYTES", chunk)
    text = "\ufeff" + end.join(["", '  {"a": 1}', "   ", "", '"ü"', "\t", '[{"role": "user", "content": "x"}]'])
    rows = read_prompts(write(tmp_path / "p.jsonl", text))
    assert list(rows) == [{"a": 1}, "ü", [{"role": "user", "content": "x"}]]
    assert list(read_prompts(write(tmp_path / "p.txt", text)))[1:] == ['"ü"', '[{"role": "user", "content": "x"}]']


@given(texts=st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), max_size=8))
def test_every_line_of_a_text_is_a_prompt(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Against Python's own splitting at line ends."""
    path = write(tmp_path_factory.mktemp("t") / "p.txt", "first\n" + "\n".join(texts))
    assert list(read_prompts(path)) == ["first", *(text for text in texts if text.encode().strip())]


def test_a_bad_line_is_told_when_its_turn_comes(tmp_path: Path) -> None:
    rows = read_prompts(write(tmp_path / "p.jsonl", '{"a": 1}\n\n{"a": }\n{"a": 3}\n'))
    assert (rows[0], rows[2]) == ({"a": 1}, {"a": 3})
    with pytest.raises(DataError, match=r"p\.jsonl:3: bad JSON, Expecting value at column 7"):
        rows[1]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.jsonl", "", r"p\.jsonl: the file holds no prompts"),
        ("p.jsonl", "\n \n", r"p\.jsonl: the file holds no prompts"),
        ("p.json", "[]", r"p\.json: the file holds no prompts"),
        ("p.csv", "a,b\n", r"p\.csv: the file holds no prompts"),
        ("p.csv", "", r"p\.csv: the file holds no prompts"),
        ("p.txt", "\n", r"p\.txt: the file holds no prompts"),
        ("p.jsonl", "{a: 1}\n", r"p\.jsonl:1: bad JSON, Expecting property name"),
        ("p.jsonl", "\n7\n", r"p\.jsonl:2: a row is an object, a string or a list of chat messages, got 7"),
        ("p.jsonl", "[" * 100_000, r"p\.jsonl:1: bad JSON, .*recursion"),
        ("p.jsonl", "1" * 5000, r"p\.jsonl:1: bad JSON, Exceeds the limit"),
        ("p.jsonl", b'"\xff"', r"p\.jsonl:1: not UTF-8"),
        ("p.txt", b"\xff", r"p\.txt:1: not UTF-8"),
        ("p.json", "[1,\n2,\n}", r"p\.json:3: bad JSON, .*\.jsonl"),
        ("p.json", "[7]", r"p\.json: entry 0: a row is an object"),
        ("p.json", b'["\xff"]', r"p\.json:1: not UTF-8"),
        ("p.csv", "a,b\n1,2\n3\n", r"p\.csv:3: 1 values for the 2 columns a, b"),
        ("p.csv", 'a\n"x', r"p\.csv:2: bad CSV"),
        ("p.csv", "a,a\n1,2\n", r"p\.csv:1: a column's name stands twice"),
        ("p.json", b'["a",\n"b",\n"\xff"]', r"p\.json:3: not UTF-8"),
        ("p.csv", b"a\n\xff\n", r"p\.csv:2: not UTF-8"),
        ("p.csv", b"a\n" + b"row\n" * 5000 + b"\xff\n", r"p\.csv:5002: not UTF-8"),
        ("p.csv", "a,b\n1,2,3\n", r"p\.csv:2: 3 values for the 2 columns a, b\. Quote values"),
        ("p.parquet", "nonsense", r"p\.parquet: no readable Parquet file"),
        ("p.jsonl", gzip.compress(b'{"a": 1}\n'), r"p\.jsonl: .* is packed with gzip\. Unpack or convert it"),
        ("p.csv", "a\n1\n".encode("utf-16"), r"p\.csv: .* is UTF-16, not UTF-8"),
        ("p.json", b"PK\x03\x04rest", r"p\.json: .* is a zip archive"),
        ("p.jsonl.gz", gzip.compress(b'{"a": 1}\n'), r"p\.jsonl\.gz: the file is packed\..*: gunzip -k .*p\.jsonl\.gz"),
        ("p.csv.ZST", "x", r"p\.csv\.ZST: the file is packed.*unzstd"),
        ("p.xlsx", "x", r"p\.xlsx: the ending '\.xlsx' is not known.*\.jsonl, .*\.parquet"),
        ("p", "x", r"the ending '' is not known"),
    ],
)
def test_files_that_can_not_be_read(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_prompts(write(tmp_path / name, text))


def test_a_json_file_holds_a_list_or_lines(tmp_path: Path) -> None:
    assert list(read_prompts(write(tmp_path / "a.json", json.dumps(ROWS, indent=2)))) == ROWS
    assert list(read_prompts(write(tmp_path / "b.json", json_lines(ROWS)))) == ROWS


@pytest.mark.parametrize(("name", "dialect"), [("p.csv", "excel"), ("p.tsv", "excel-tab")])
def test_tables_in_text_form(tmp_path: Path, name: str, dialect: str) -> None:
    """Written by Python's csv module, line ends and separators inside of values included."""
    rows = [{"prompt": 'a "b",\nc\td', "answer": "1"}, {"prompt": "", "answer": "x"}]
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"], dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
    assert list(read_prompts(tmp_path / name)) == rows


def test_parquet(tmp_path: Path) -> None:
    """Written by pyarrow in several row groups; nested values come as Python's."""
    rows = [{**row, "messages": [{"role": "user", "content": "x"}], "none": None} for row in ROWS]
    write_parquet(rows, tmp_path / "p.parquet", row_group_size=3)
    read = read_prompts(tmp_path / "p.parquet")
    assert (len(read), list(read), read[-2]) == (7, rows, rows[5])


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'chatlearn\[data\]'"):
        read_prompts(write(tmp_path / "p.parquet", "x"))


def test_folders_patterns_and_lists_of_paths_are_one_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = write(tmp_path / "a.jsonl", json_lines(ROWS[:4])), write(tmp_path / "b.jsonl", json_lines(ROWS[4:]))
    write(tmp_path / "README.md", "not data")
    for source in (tmp_path, str(tmp_path / "*.jsonl"), [a, b], (a, b)):
        rows = read_prompts(source)
        assert (len(rows), list(rows), rows[4], rows[-1]) == (7, ROWS, ROWS[4], ROWS[6])
    assert list(read_prompts([b, a])) == ROWS[4:] + ROWS[:4]
    monkeypatch.chdir(tmp_path)
    assert list(read_prompts("a.jsonl")) == ROWS[:4]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    assert list(read_prompts(str(write(tmp_path / "a[1].txt", "x\n")))) == ["x"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.jsonl", r"there is no file '.*gone\.jsonl'.*given as a list"),
        ("What is 2 + 2?", r"no file matches '.*'.*\['.*What is 2 \+ 2\?'\]"),
        ("Tell me a story. " * 100, r"there is no file"),
        ("a\0b", r"there is no file"),
        ("folder", r"folder: the folder holds no files that end with"),
    ],
)
def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        read_prompts(name)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.txt", "p.parquet", "*"])
def test_rows_travel_by_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = [{"prompt": "x" * 1000} for _ in range(50)]
    if name == "p.parquet":
        write_parquet(rows, tmp_path / name)
    elif name == "p.csv":
        write(tmp_path / name, "prompt\n" + "".join(row["prompt"] + "\n" for row in rows))
    else:
        write(tmp_path / name.replace("*", "a.jsonl"), json.dumps(rows) if name == "p.json" else json_lines(rows))
    monkeypatch.chdir(tmp_path)
    read = read_prompts(name)
    expected = list(read)
    monkeypatch.chdir("/")
    sent = pickle.dumps(read)
    assert len(sent) < 1000
    assert list(pickle.loads(sent)) == expected


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_parquet_under_another_name_is_told_by_its_content(tmp_path: Path, ending: str) -> None:
    write_parquet(ROWS, tmp_path / f"p{ending}")
    with pytest.raises(DataError, match=rf"p\{ending}: .* is Parquet\. Name it 'p\.parquet'"):
        read_prompts(tmp_path / f"p{ending}")


def test_a_text_may_begin_like_a_parquet_file(tmp_path: Path) -> None:
    assert list(read_prompts(write(tmp_path / "p.txt", "PAR1 is a word\n"))) == ["PAR1 is a word"]
