"""Sinks of one's own in whole runs, named in the configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import toys
import yaml

import chatlearn
from chatlearn.config import load_config_text
from chatlearn.config.json_schema import json_schema
from chatlearn.errors import ConfigError

OWN = """
class Rows:
    note = "kept in a list"
    rows = []

    def __init__(self, context):
        self.rows.append(context.exp_name)

    def write(self, episode, row):
        self.rows.append((episode, row["num_samples"]))

    def close(self, status="finished"):
        self.rows.append(status)
"""


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with toys.quick_runs():
        yield


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_rows.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def config(folder: Path, sinks: str) -> Path:
    """A file whose fifth line names the sinks."""
    path = folder / "my.yaml"
    path.write_text(
        textwrap.dedent(f"""\
            runtime:
              num_episode: 2
              sample_per_episode: 4
              output_dir: {folder / "runs"}
              sinks: {sinks}
            """)
    )
    return path


@pytest.mark.parametrize("sinks", ["[tensorboard, own_rows:Rows]", "own_rows:Rows, tensorboard"])
def test_a_sink_by_its_import_path_gets_every_row(own: Path, sinks: str) -> None:
    import own_rows  # pyright: ignore[reportMissingImports]

    own_rows.Rows.rows.clear()
    chatlearn.init(str(config(own, sinks)))
    toys.make_engine().learn()
    assert own_rows.Rows.rows == ["chatlearn", (1, 4), (2, 4), "finished"]
    assert list((own / "runs" / "chatlearn" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        ("[tensorboard, own_rows:Row]", "own_rows has no class 'Row'. Did you mean 'Rows'?"),
        ("own_row:Rows", "there is no module 'own_row'"),
        ("own_rows:OWN", "own_rows has no class 'OWN'"),
        ("own_rows:__name__", "it is str, not a class"),
    ],
)
def test_what_is_no_sink_is_told_before_anything_starts(own: Path, sinks: str, words: str) -> None:
    toys.EVENTS.clear()
    path = config(own, sinks)
    chatlearn.init(str(path))
    with pytest.raises(ConfigError) as caught:
        toys.make_engine().learn()
    assert f"{path}:5  runtime.sinks: The sink 'own_row" in str(caught.value)
    assert words in str(caught.value)
    assert not (own / "runs").exists()
    assert toys.EVENTS == []


@pytest.mark.parametrize(
    ("sinks", "names"),
    [
        ("my_package.my_module:MySink", ["my_package.my_module:MySink"]),
        ("[jsonl, a:B]", ["jsonl", "a:B"]),
        ("wandb,a:B", ["wandb", "a:B"]),
    ],
)
def test_import_paths_in_a_configuration(sinks: str, names: list[str]) -> None:
    """The loader and the JSON Schema that editors use agree."""
    text = f"runtime:\n  sinks: {sinks}\n"
    assert load_config_text(text).runtime.sinks == names
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        ("[tensorbord]", "there is no sink `tensorbord`; did you mean `tensorboard`?"),
        ("[my_module.MySink]", "there is no sink `my_module.MySink`"),
        ("['a:']", "`a:` is no import path"),
        ("[':B']", "`:B` is no import path"),
        ("['a b:C']", "`a b:C` is no import path"),
        ("['a:b:C']", "`a:b:C` is no import path"),
    ],
)
def test_what_is_neither_a_name_nor_an_import_path(sinks: str, words: str) -> None:
    text = f"runtime:\n  sinks: {sinks}\n"
    with pytest.raises(ConfigError) as caught:
        load_config_text(text)
    assert f"text:2  runtime.sinks: {words}" in str(caught.value)
    assert "the import path of a class of your own, such as my_package.my_module:MySink." in str(caught.value)
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text))
