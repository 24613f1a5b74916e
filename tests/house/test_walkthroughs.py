"""The walk-throughs of docs/contributing/ are followed to the letter: one file, one line, and the commands of the page.

In a copy of the source, so that nothing of it stays. Not covered: what a pull request adds beyond that.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "docs" / "contributing"
BLOCK = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?(?:^<!-- fragment -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass
class Block:
    kind: str
    file: str | None
    text: str


def blocks(page: str) -> list[Block]:
    text = (PAGES / page).read_text(encoding="utf-8")
    return [Block(match["kind"], match["file"], match["text"]) for match in BLOCK.finditer(text)]


def add_line(path: Path, diff: str) -> None:
    """Follows a block of a line that the file has once, and a line to put after it."""
    anchor, new = diff.splitlines()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert anchor[0] == " "
    assert new[0] == "+"
    assert lines.count(anchor[1:]) == 1, f"{path} has {anchor[1:]!r} {lines.count(anchor[1:])} times"
    lines.insert(lines.index(anchor[1:]) + 1, new[1:])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a walk-through needs of a clone."""
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=leave)
    for name in ("conftest.py", "runtime/conftest.py", "runtime/runtime_cases.py", "runtime/test_cluster.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(command: str, folder: Path) -> str:
    """Runs a command of a page with this Python, on the copy's source; what it prints."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    assert words[0] == sys.executable, command
    variables = {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **variables}
    for name in [name for name in environment if name.startswith(("PYTEST_", "COV_"))]:
        del environment[name]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command} ends with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def has(shown: str, printed: str) -> bool:
    """Whether the lines that a page shows are printed, in order; ``…`` stands for anything."""
    pattern = r"\n(?:.*\n)*?".join(
        r".*".join(re.escape(part) for part in line.split("…")) for line in shown.strip().splitlines()
    )
    return re.search(rf"^{pattern}$", printed, flags=re.M) is not None


def follow(page: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Does what the page says, from top to bottom; gives each command with what it printed."""
    waiting: tuple[str, str] | None = None
    for block in blocks(page):
        if block.kind == "diff":
            assert block.file is not None
            add_line(folder / block.file, block.text)
        elif block.file is not None:
            path = folder / block.file
            assert not path.exists(), f"{block.file} is there already"
            path.write_text(block.text, encoding="utf-8")
        elif block.kind == "bash":
            for command in block.text.splitlines():
                waiting = command, run(command, folder)
                yield waiting
        else:
            assert block.kind == "text", f"a block of {block.kind} that nobody follows"
            assert waiting is not None
            assert has(block.text, waiting[1]), f"{waiting[0]} printed something else:\n{waiting[1]}"


def in_source(page: str) -> list[str]:
    """Files of the package that a page writes."""
    files = [block.file for block in blocks(page) if block.kind == "python" and block.file is not None]
    return [file for file in files if file.startswith("src/")]


@pytest.mark.parametrize("page", ["add-an-algorithm.md", "add-a-sink.md", "add-a-backend.md"])
def test_a_walk_through_is_one_new_file_and_one_line(page: str) -> None:
    [file] = in_source(page)
    assert not (ROOT / file).exists()
    [diff] = [block.text for block in blocks(page) if block.kind == "diff"]
    assert [line[0] for line in diff.splitlines()] == [" ", "+"]


def test_every_walk_through_is_followed_here() -> None:
    assert {path.name for path in PAGES.glob("*.md")} == {"add-an-algorithm.md", "add-a-sink.md", "add-a-backend.md"}


def test_an_estimator_is_added_and_a_run_uses_it(clone: Path) -> None:
    [(_, printed)] = follow("add-an-algorithm.md", clone)
    # by hand: the median of 0, 1, 2, 9 is 1.5
    assert printed.count("[0, 1, 2, 3] [-1.5, -0.5, 0.5, 7.5]") == 2


def test_a_sink_is_added_and_gets_the_rows_of_a_run(clone: Path) -> None:
    [(_, printed)] = follow("add-a-sink.md", clone)
    assert "two episodes:" in printed
    [table] = (clone / "runs").rglob("metrics.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert rows[0] == ["episode", "metric", "value"]
    assert ["1", "num_samples", "4.0"] in rows


def test_a_cluster_is_added_and_passes_the_contract_and_runs_a_program(clone: Path) -> None:
    (_, contract), (_, program) = follow("add-a-backend.md", clone)
    passed = re.search(r"(\d+) passed", contract)
    assert passed is not None
    assert int(passed[1]) >= 20
    assert "failed" not in contract
    assert "skipped" not in contract
    assert "three episodes, the same losses" in program
    assert sorted(path.name for path in (clone / "runs").iterdir()) == ["direct", "local"]


def test_a_page_that_is_wrong_is_noticed(clone: Path) -> None:
    with pytest.raises(AssertionError, match="0 times"):
        add_line(clone / "src/chatlearn/config/registries.py", " SINKS = [\n+    1\n")
    with pytest.raises(AssertionError, match="ends with 1"):
        run('python -c "import chatlearn.nothing"', clone)
    assert not has("[1, 2]\n[3]", "[1, 2]\n[4]\n")
    assert not has("[3]\n[1, 2]", "[1, 2]\n[3]\n")
    assert has("[1, 2]\n[3]", "a\n[1, 2]\nb\n[3]\n")
