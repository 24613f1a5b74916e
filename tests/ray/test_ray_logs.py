"""What workers print: in one file each in the run's folder, and in the terminal with the replica's name before it."""

from __future__ import annotations

import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from programs_on_ray import HERE, run_program


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], Path]:
    """A run in which a replica dies and is replaced, and its logs."""
    folder = tmp_path_factory.mktemp("talking")
    done = run_program(HERE / "talking.py", str(folder), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, folder / "runs/talking/logs"


def test_each_worker_has_a_file_with_what_it_printed_in_order(ended: tuple[CompletedProcess[str], Path]) -> None:
    lines = (ended[1] / "policy-0.log").read_text().splitlines()
    assert re.fullmatch(r"policy 0 is set up in \d+", lines[0])
    assert lines[1:] == ["to the other stream", *["batch of 2"] * 4]
    assert "UserWarning: look at this" in (ended[1] / "quiet-0.log").read_text()


def test_a_replica_that_was_replaced_keeps_its_file(ended: tuple[CompletedProcess[str], Path]) -> None:
    before, after = ((ended[1] / name).read_text().splitlines() for name in ("policy-1.1.log", "policy-1.log"))
    assert before[1:] == ["to the other stream", "batch of 2", "about to end"]
    assert after[1:] == ["to the other stream", *["batch of 2"] * 4]
    assert before[0] != after[0]


def test_the_files_are_there_while_the_run_goes_on_and_stay(ended: tuple[CompletedProcess[str], Path]) -> None:
    names = ["policy-0.log", "policy-1.1.log", "policy-1.log", "quiet-0.log"]
    assert f"while it runs: {names}" in ended[0].stdout
    assert sorted(path.name for path in ended[1].iterdir()) == names
    assert not any(path.is_symlink() for path in ended[1].iterdir())


def test_lines_in_the_terminal_begin_with_the_replica(ended: tuple[CompletedProcess[str], Path]) -> None:
    said = re.sub(r"\x1b\[\d+m", "", ended[0].stdout + ended[0].stderr)
    assert re.search(r"^\(policy\[[01]\] pid=\d+\) policy [01] is set up in \d+$", said, re.MULTILINE)


def test_the_error_quotes_the_last_lines(ended: tuple[CompletedProcess[str], Path]) -> None:
    said = ended[0].stdout + ended[0].stderr
    assert re.search(
        r"policy\[1\] died .*os\._exit\(3\)(.|\n)*The last lines of its log:\n(.|\n)*  about to end\n", said
    )
