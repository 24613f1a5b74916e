"""Every sink takes rows of metrics; what it wrote is read back by a reader that is not ours."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chatlearn.errors import ConfigError
from chatlearn.observe import sinks
from chatlearn.observe.sinks import SINKS, SinkContext, check_sinks, open_sinks
from chatlearn.observe.sinks.jsonl import JsonlSink
from chatlearn.observe.sinks.tensorboard import TensorBoardSink

ROWS = {1: {"a/loss": 0.1, "num_samples": 20}, 2: {"a/loss": 1 / 3, "num_samples": 40}}


def _context(folder: Path, first_episode: int = 1) -> SinkContext:
    return SinkContext(folder, first_episode, "toy", {})


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(scalar.step, scalar.value) for scalar in reader.Scalars(name)]


def test_jsonl_is_complete_after_each_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(_context(tmp_path))
    for episode, row in ROWS.items():
        sink.write(episode, row)
        lines = path.read_text().splitlines()  # while the sink is open
        assert json.loads(lines[-1]) == {"episode": episode, **row}  # floats to the last bit
        assert len(lines) == episode
    sink.close()
    again = JsonlSink(_context(tmp_path, 3))
    again.write(3, {"a/loss": 0.0})
    again.close()
    assert [json.loads(line)["episode"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_jsonl_stays_json_whatever_comes(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    sink = JsonlSink(_context(tmp_path))
    sink.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "text": "NaN"})
    sink.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert [row[name] for name in "abcd"] == [None, None, None, 1.5]
    assert set(row["non_finite"]) == {"a", "b", "c"}
    assert math.isnan(float(row["non_finite"]["a"]))
    assert [float(row["non_finite"][name]) for name in "bc"] == [math.inf, -math.inf]


def test_tensorboard_events(tmp_path: Path) -> None:
    sink = TensorBoardSink(_context(tmp_path))
    for episode, row in ROWS.items():
        sink.write(episode, {**row, "text": "left out"})
    sink.close()
    assert _scalars(tmp_path / "tensorboard", "a/loss") == [(1, pytest.approx(0.1)), (2, pytest.approx(1 / 3))]
    assert _scalars(tmp_path / "tensorboard", "num_samples") == [(1, 20), (2, 40)]


@pytest.mark.parametrize("first", [1, 3])
def test_tensorboard_forgets_what_a_resume_replaces(first: int, tmp_path: Path) -> None:
    for start, value in ((1, 1.0), (first, 2.0)):
        sink = TensorBoardSink(_context(tmp_path, start))
        for episode in range(start, 5):
            sink.write(episode, {"x": value})
        sink.close()
    assert _scalars(tmp_path / "tensorboard", "x") == [(e, 1.0 if e < first else 2.0) for e in range(1, 5)]


@pytest.mark.parametrize("clock", [(2e9, 2e9 + 60, 2e9 + 120), (2e9, 2e9, 2e9), (2e9, 1e9, 1.5e9)])
def test_tensorboard_forgets_it_whatever_the_clock_says(
    clock: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts of a run: a minute apart, within one second, and with a clock that goes back."""
    for part, (start, now) in enumerate(zip((1, 3, 2), clock, strict=True)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        monkeypatch.setattr(os, "getpid", lambda part=part: 9_999 + part)  # names are compared letter by letter
        sink = TensorBoardSink(_context(tmp_path, start))
        for episode in range(start, 5):
            sink.write(episode, {"x": part})
        sink.close()
    assert _scalars(tmp_path / "tensorboard", "x") == [(1, 0), (2, 2), (3, 2), (4, 2)]


def test_what_tensorboard_was_given_is_in_the_file_at_once(tmp_path: Path) -> None:
    sink = TensorBoardSink(_context(tmp_path))
    sink.write(1, {"x": 1.0})
    assert _scalars(tmp_path / "tensorboard", "x") == [(1, 1.0)]
    sink.close()


def test_the_default_sinks_of_a_run(tmp_path: Path) -> None:
    opened = open_sinks(tmp_path, 1)
    for sink in opened:
        sink.write(1, ROWS[1])
        sink.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["a/loss"] == 0.1
    assert _scalars(tmp_path / "tensorboard", "a/loss") == [(1, pytest.approx(0.1))]


class Remembering:
    """A sink of one's own, found by its import path."""

    note = "in memory"

    def __init__(self, context: SinkContext) -> None:
        self.context, self.rows, self.status = context, [], ""

    def write(self, episode: int, row: Any) -> None:
        self.rows.append((episode, row))

    def close(self, status: str = "finished") -> None:
        self.status = status


class Refusing(Remembering):
    def __init__(self, context: SinkContext) -> None:
        raise OSError("no room")


class Untitled(Remembering):
    note = None  # type: ignore[assignment]

    def close(self, status: str = "finished") -> None:
        CLOSED.append(status)


CLOSED: list[str] = []


class ByNew:
    """Constructed in other ways than by __init__, and with methods that need no instance."""

    note = ""

    def __new__(cls, context: SinkContext) -> ByNew:
        return object.__new__(cls)

    @staticmethod
    def write(episode: int, row: Any) -> None: ...

    @classmethod
    def close(cls, status: str = "finished") -> None: ...


class NoWrite:
    def __init__(self, context: SinkContext) -> None: ...

    def close(self, status: str) -> None: ...


class NoInit:
    def write(self, episode: int, row: Any) -> None: ...

    def close(self, status: str) -> None: ...


class TwoArguments(Remembering):
    def __init__(self, context: SinkContext, path: str) -> None: ...


class ShortWrite(Remembering):
    def write(self, row: Any) -> None: ...  # type: ignore[override]


class ShortStaticWrite(Remembering):
    @staticmethod
    def write(row: Any) -> None: ...  # type: ignore[override]


class ShortClose(Remembering):
    def close(self) -> None: ...  # type: ignore[override]


def factory(context: SinkContext) -> Remembering:
    return Remembering(context)


def test_a_sink_of_ones_own(tmp_path: Path) -> None:
    names = [f"{__name__}:Remembering"]
    assert check_sinks(names) == []
    jsonl, own = open_sinks(tmp_path, 4, names, exp_name="mine", config={"runtime": {"seed": 1}})
    assert isinstance(jsonl, JsonlSink)  # always there
    assert type(own).__name__ == "Remembering"
    assert own.context == SinkContext(tmp_path, 4, "mine", {"runtime": {"seed": 1}})  # type: ignore[attr-defined]


def test_names_are_opened_once_and_nothing_beside_them(tmp_path: Path) -> None:
    opened = open_sinks(tmp_path, 1, ["jsonl", "tensorboard", "tensorboard"])
    assert [type(sink).__name__ for sink in opened] == ["JsonlSink", "TensorBoardSink"]
    assert [type(sink).__name__ for sink in open_sinks(tmp_path, 1, [])] == ["JsonlSink"]
    for sink in opened:
        sink.close()


def test_what_was_opened_is_closed_when_the_next_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(JsonlSink, "close", lambda self, status: closed.append(status))
    with pytest.raises(ConfigError, match=rf"{__name__}:Refusing': its constructor raises OSError at .*: no room"):
        open_sinks(tmp_path, 1, [f"{__name__}:Refusing"])
    assert closed == ["failed"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandbb", ["'wandbb'", "did you mean 'wandb'?", "jsonl, tensorboard, wandb, mlflow, trackio"]),
        ("prometheus", ["no sink 'prometheus'", "my_package.my_module:MySink"]),
        ("no_such_package.sinks:Sink", ["no module 'no_such_package.sinks'", "PYTHONPATH"]),
        ("chatlearn.no_such_module:Sink", ["no module 'chatlearn.no_such_module'"]),
        (":Sink", ["':Sink' is no import path such as my_package.my_module:MySink"]),
        (".sinks:Sink", ["is no import path"]),
        ("sinks:", ["is no import path"]),
        ("a.b:C.D", ["is no import path"]),
    ],
)
def test_unknown_names_are_problems(name: str, words: list[str]) -> None:
    (problem,) = check_sinks(["jsonl", name])
    for word in words:
        assert word in problem


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Remembring", "has no class 'Remembring'. Did you mean 'Remembering'?"),
        ("Absent", "has no class 'Absent'."),
        ("ROWS", "it is dict, not a class. Name a class with `write`, `close` and a `note`."),
        ("factory", "it is function, not a class."),
        ("NoWrite", "NoWrite has no method `write`. Define write(self, episode, row)."),
        ("NoInit", "NoInit has no method `__init__`. Define __init__(self, context)."),
        ("TwoArguments", "TwoArguments.__init__ can't be called as a sink's is. Define __init__(self, context)."),
        ("ShortWrite", "ShortWrite.write can't be called as a sink's is. Define write(self, episode, row)."),
        ("ShortStaticWrite", "ShortStaticWrite.write can't be called as a sink's is."),
        ("ShortClose", "ShortClose.close can't be called as a sink's is. Define close(self, status)."),
    ],
)
def test_what_is_no_class_of_a_sink(name: str, words: str, tmp_path: Path) -> None:
    path = f"{__name__}:{name}"
    (problem,) = check_sinks([path])
    assert problem.startswith(f"The sink {path!r}: ")
    assert words in problem
    with pytest.raises(ConfigError) as caught:
        open_sinks(tmp_path, 1, ["tensorboard", path])
    assert str(caught.value) == problem
    assert list(tmp_path.iterdir()) == []


def test_every_class_that_can_be_called_as_a_sink_is_one(tmp_path: Path) -> None:
    names = [f"{__name__}:{name}" for name in ("Remembering", "Refusing", "ByNew")]
    assert check_sinks(names) == []
    (_, own) = open_sinks(tmp_path, 1, names[2:])
    assert isinstance(own, ByNew)


def test_a_sink_without_a_note_is_closed_and_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'test_sinks:Untitled\' has no text `note`. Set it in the class, note = ""'):
        open_sinks(tmp_path, 1, [f"{__name__}:Untitled"])
    assert CLOSED == ["failed"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import not_there_either\n", "raises ModuleNotFoundError at {file}:1: No module named 'not_there_either'"),
        ("\n\nraise RuntimeError('no licence')\n", "raises RuntimeError at {file}:3: no licence"),
        ("def f()\n", "raises SyntaxError: expected ':' (broken_sink.py, line 1)"),
    ],
)
def test_a_module_that_can_not_be_imported(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "broken_sink.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = check_sinks(["broken_sink:Sink"])
    assert problem == f"The sink 'broken_sink:Sink': importing broken_sink {words.format(file=file)}"


def test_a_sink_of_the_program_itself() -> None:
    program = (
        "from chatlearn.observe.sinks import check_sinks\n"
        "class Mine:\n"
        "    note = ''\n"
        "    def __init__(self, context): ...\n"
        "    def write(self, episode, row): ...\n"
        "    def close(self, status='finished'): ...\n"
        "print(check_sinks(['__main__:Mine']))"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_names_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sinks.importlib.util.find_spec
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda p: None if p == name else real(p))
    (problem,) = check_sinks([name])
    assert f"needs {name}" in problem
    assert f"pip install 'chatlearn[{name}]'" in problem
    with pytest.raises(ConfigError, match="pip install"):
        open_sinks(tmp_path, 1, [name])
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_is_a_default_only_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda p: None)
    assert [type(sink).__name__ for sink in open_sinks(tmp_path, 1)] == ["JsonlSink"]


def test_checking_imports_no_package_of_a_sink() -> None:
    program = (
        "import sys\n"
        "from chatlearn.observe.sinks import SINKS, check_sinks\n"
        "assert check_sinks(SINKS) == []\n"
        "print([m for m in ('torch', 'tensorboard', 'wandb', 'mlflow', 'trackio', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_has_a_class() -> None:
    assert check_sinks(SINKS) == []
