"""One run whose samples are replayed, and the command as the console script calls it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import toys
from replay_cases import Replay, Replayed, edit, write_program

from chatlearn.cli import main


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    with toys.quick_runs():
        yield tmp_path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program, and its run of six episodes under ``runs/symbols``."""
    folder = tmp_path_factory.mktemp("made")
    write_program(folder)
    with pytest.MonkeyPatch.context() as patch, toys.quick_runs():
        patch.chdir(folder)
        assert main(["run", "program.py", "-c", "config.yaml"]) == 0
    return folder


@pytest.fixture
def run(made_once: Path, in_folder: Path) -> Path:
    """A copy of that run, whose program is a copy too."""
    shutil.copytree(made_once, in_folder, dirs_exist_ok=True, symlinks=True)
    run = in_folder / "runs" / "symbols"
    edit(run / "program.json", lambda text: text.replace(str(made_once), str(in_folder)))
    return run


@pytest.fixture
def replay(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> Replay:
    """``chatlearn replay RUN --sample ID … -o FILE``."""

    def called(run: Path, sample: int, *words: str) -> Replayed:
        capsys.readouterr()
        out = in_folder / "again.jsonl"
        out.unlink(missing_ok=True)
        code = main(["replay", str(run), "--sample", str(sample), "-o", str(out), *words])
        captured = capsys.readouterr()
        lines = out.read_text().splitlines() if out.exists() else []
        return Replayed(code, captured.out, captured.err, {json.loads(line)["sample_id"]: line for line in lines})

    return called
