"""A run knows how it was started, and which runs of the same process came before it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from replay_cases import Replay, lines_of, write_program

from chatlearn.cli import main
from chatlearn.config.active import init, over_all
from chatlearn.config.schema import Config
from chatlearn.engine.program import Program, current_program, read_program, running
from chatlearn.engine.program import write_program as write


def _main(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    module = ModuleType("__main__")
    module.__dict__.update({"__spec__": None, **attributes})
    monkeypatch.setitem(sys.modules, "__main__", module)


def test_a_script(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_folder / "train.py").write_text("print()\n")
    monkeypatch.setattr(sys, "argv", ["train.py", "-c", "a.yaml"])
    _main(monkeypatch, __file__="train.py")
    found = current_program(in_folder / "run")
    assert (found.script, found.words, found.folder) == (str(in_folder / "train.py"), ["-c", "a.yaml"], str(in_folder))
    assert found.sha256 == hashlib.sha256(b"print()\n").hexdigest()
    assert found.run == str(in_folder / "run")
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert not found.problem


def test_a_module(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _main(monkeypatch, __file__="somewhere/__main__.py", __spec__=SimpleNamespace(name="package.__main__"))
    found = current_program(in_folder)
    assert (found.module, found.script) == ("package", "")


def test_a_recipe(in_folder: Path) -> None:
    with running("ppo", ["runtime.seed=1"]):
        found = current_program(in_folder)
    assert (found.recipe, found.words, found.script, found.module) == ("ppo", ["runtime.seed=1"], "", "")


@pytest.mark.parametrize(
    ("argv", "modules", "ps1", "what"),
    [
        (["-c"], {}, False, "the text behind `python -c`"),
        (["kernel"], {"ipykernel": ModuleType("ipykernel")}, False, "a notebook"),
        ([""], {}, True, "an interactive session"),
        (["-"], {}, False, "no file (its text came from elsewhere)"),
    ],
)
def test_what_is_no_file(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], modules: dict[str, Any], ps1: bool, what: str
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    for name in ("ipykernel", "IPython"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    if ps1:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    _main(monkeypatch)
    assert current_program(in_folder).problem == what


def test_what_is_written_is_read_again(in_folder: Path) -> None:
    with running("ppo", ["a=ä"]):
        write(in_folder)
        assert read_program(in_folder) == current_program(in_folder)
    assert [path.name for path in in_folder.iterdir()] == ["program.json"]


def test_one_run_of_several_in_a_program(in_folder: Path, replay: Replay) -> None:
    """The earlier one stands as it is: it is finished, and what the program reads of it is there."""
    several = (
        "import chatlearn\nimport replay_modules\n\n"
        "for seed in range(2):\n"
        "    config = replay_modules.settings(seed=seed, num_episode=3)\n"
        "    chatlearn.init(config)\n"
        "    engine = replay_modules.make_engine()\n"
        "    engine.learn()\n"
        "    print('has', len((engine.run.path / 'metrics.jsonl').read_text().splitlines()), 'rows')\n"
    )
    write_program(in_folder, several)
    assert main(["run", "program.py"]) == 0
    first, second = in_folder / "runs" / "symbols", in_folder / "runs" / "symbols-2"
    assert json.loads((second / "program.json").read_text())["earlier"] == [str(first)]
    assert lines_of(first, 2) != lines_of(second, 2)
    for run, rows in ((first, 0), (second, 1)):
        sample = min(lines_of(run, 2))
        replayed = replay(run, sample)
        assert replayed.code == 0, replayed.err
        assert replayed.lines[sample] == lines_of(run, 2)[sample]
        assert replayed.err.count("has 3 rows") == rows


def test_a_module_is_started_as_one_again(in_folder: Path, replay: Replay) -> None:
    """``python -m``, in a process of its own; relative imports in it work as they did."""
    package = in_folder / "symbols_package"
    write_program(package, num_episode=2)
    (package / "engines.py").write_text("from replay_modules import make_engine\n")
    text = "import chatlearn\nfrom .engines import make_engine\n\nchatlearn.init()\nmake_engine().learn()\n"
    (package / "train.py").write_text(text)
    environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "symbols_package.train", "-c", "symbols_package/config.yaml"]
    subprocess.run(command, cwd=in_folder, env=environment, check=True, capture_output=True)
    run = in_folder / "runs" / "symbols"
    assert read_program(run).module == "symbols_package.train"
    replayed = replay(run, 24)
    assert replayed.code == 0, replayed.err
    assert "All 8 logged lines of the batch came out again, bit for bit." in replayed.out


def test_the_name_of_a_program() -> None:
    programs = [Program(recipe="ppo"), Program(script="/a/b.py"), Program(module="a.b"), Program(problem="a notebook")]
    assert [program.name for program in programs] == ["ppo", "/a/b.py", "-m a.b", "a notebook"]


def test_settings_over_all_go_over_whatever_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "runtime.seed=1"])
    with over_all(["runtime.seed=5"]):
        seeds = [init(source).runtime.seed for source in (None, {"runtime": {"seed": 2}}, Config(runtime={"seed": 3}))]
    assert seeds == [5, 5, 5]
    assert init().runtime.seed == 1
