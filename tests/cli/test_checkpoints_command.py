"""``chatlearn checkpoints``: lists, verifies and removes, on the folders of a real run.

Not covered: file systems without locks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toys

import chatlearn
from chatlearn.cli import main

HOLDER = """\
import sys
from pathlib import Path
from chatlearn.checkpoint import run_lock
claim = run_lock.claim(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four episodes that has kept a checkpoint of each."""
    output = tmp_path_factory.mktemp("runs")
    chatlearn.init(toys.settings(output, num_episode=4, save_episode_interval=1))
    with toys.quick_runs():
        engine = toys.make_engine(evaluate=False)
        engine.learn()
        engine.stop()
    return output / "toy"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return shutil.copytree(trained, tmp_path / "toy")


def _checkpoint(run: Path, episode: int) -> Path:
    return run / "checkpoints" / f"episode-{episode:06d}"


def _episodes(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("episode-")) for path in (run / "checkpoints").glob("episode-*"))


def _flip(file: Path) -> None:
    """Turns over a bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _table(text: str) -> dict[int, str]:
    """Lines of the table by episode."""
    return {int(match[1]): match[0].strip() for match in re.finditer(r"^ *(\d+)  .*$", text, re.MULTILINE)}


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the run's lock."""
    words = [sys.executable, "-c", HOLDER, str(run)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.communicate("")


def test_each_checkpoint_is_listed_with_its_size_its_files_and_its_marks(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "best").write_text("episode-000002\n")
    assert main(["checkpoints", str(run)]) == 0
    table = _table(capsys.readouterr().out)
    assert list(table) == [1, 2, 3, 4]
    files = [path for path in _checkpoint(run, 2).rglob("*") if path.is_file()]
    listed = sum(path.stat().st_size for path in files if path.name != "manifest.json")
    assert f"{listed / 1000:.1f} kB" in table[2]
    assert re.search(rf" {len(files)}  ", table[2])
    assert table[2].endswith("best")
    assert table[4].endswith("latest")
    assert not re.search("best|latest", table[1] + table[3])


@pytest.mark.parametrize("form", ["checkpoints", "checkpoints/episode-000003", "checkpoints/latest"])
def test_a_folder_of_checkpoints_a_checkpoint_and_a_pointer_stand_for_themselves(
    run: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoints", str(run / form), "--verify"]) == 0
    expected = {"checkpoints": [1, 2, 3, 4], "checkpoints/latest": [4]}.get(form, [3])
    table = _table(capsys.readouterr().out)
    assert list(table) == expected
    assert all(line.endswith("good") for line in table.values())


def test_checkpoints_that_a_run_keeps_elsewhere_are_found_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    runtime = {"num_episode": 1, "save_episode_interval": 1, "data_checkpoint_path": str(elsewhere)}
    chatlearn.init(toys.settings(tmp_path / "runs", **runtime))
    with toys.quick_runs():
        engine = toys.make_engine(evaluate=False)
        engine.learn()
        engine.stop()
    for folder in (tmp_path / "runs" / "toy", elsewhere):
        assert main(["checkpoints", str(folder)]) == 0
        assert list(_table(capsys.readouterr().out)) == [1]


def test_a_flipped_byte_is_found_by_its_checksum_and_its_file_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _checkpoint(run, 2) / "learner.state.rank0.safetensors"
    _flip(file)
    assert main(["checkpoints", str(run), "--verify"]) == 1
    output = capsys.readouterr().out
    table = _table(output)
    assert [episode for episode, line in table.items() if line.endswith("damaged")] == [2]
    assert re.search(rf"damaged: {re.escape(str(file))} .*checksum", output)


def test_a_file_that_is_cut_off_or_missing_is_found_without_reading_contents(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = _checkpoint(run, 1) / "learner.state.rank0.safetensors"
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-10])
    gone = _checkpoint(run, 3) / "learner.state.json"
    gone.unlink()
    assert main(["checkpoints", str(run)]) == 1
    output = capsys.readouterr().out
    assert re.search(rf"damaged: {re.escape(str(cut))} .*{size - 10:,} bytes instead of {size:,}", output)
    assert f"damaged: {gone} is missing" in output
    assert output.count("damaged: ") == 2


def test_removed_checkpoints_are_gone_and_the_pointers_follow(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "best").write_text("episode-000002\n")
    assert main(["checkpoints", str(run), "--remove", "4", "--remove", "2"]) == 0
    output = capsys.readouterr().out
    assert f"removed {_checkpoint(run, 4)}" in output
    assert _episodes(run) == [1, 3]
    assert _table(output)[3].endswith("latest")
    assert not (run / "checkpoints" / "best").exists()
    assert not (run / "run.lock").exists()


def test_the_only_good_checkpoint_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for episode in (1, 2, 4):
        _flip(_checkpoint(run, episode) / "learner.state.rank0.safetensors")
    assert main(["checkpoints", str(run), "--remove", "3", "--remove", "1"]) == 1
    captured = capsys.readouterr()
    assert f"{_checkpoint(run, 3)} is the only checkpoint" in captured.err
    assert _episodes(run) == [2, 3, 4]
    assert main(["checkpoints", str(run), "--keep", "1"]) == 1
    assert _episodes(run) == [3, 4]


def test_the_newest_are_kept_beside_the_best(run: Path) -> None:
    (run / "checkpoints" / "best").write_text("episode-000001\n")
    assert main(["checkpoints", str(run), "--keep", "2"]) == 0
    assert _episodes(run) == [1, 3, 4]
    assert main(["checkpoints", str(run), "--keep", "7"]) == 0
    assert _episodes(run) == [1, 3, 4]


def test_an_episode_without_checkpoint_removes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(run), "--remove", "1", "--remove", "9"]) == 1
    assert "no checkpoint of episode 9, so nothing is removed. It has: 1, 2, 3, 4" in capsys.readouterr().err
    assert _episodes(run) == [1, 2, 3, 4]


@pytest.mark.parametrize("words", [["--remove", "1"], ["--keep", "1"], ["--clean"]])
@pytest.mark.parametrize("form", ["", "checkpoints"])
def test_nothing_is_removed_while_another_process_has_the_run(
    run: Path, holder: subprocess.Popen[str], words: list[str], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / ".episode-000005.partial").mkdir()
    assert main(["checkpoints", str(run / form), *words]) == 1
    assert f"{run} is in use by process {holder.pid}" in capsys.readouterr().err
    assert _episodes(run) == [1, 2, 3, 4]
    assert (run / "checkpoints" / ".episode-000005.partial").exists()
    assert main(["checkpoints", str(run / form)]) == 0


def test_what_killed_writes_have_left_is_listed_and_cleaned_away(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints"
    shutil.copytree(_checkpoint(run, 1), folder / ".episode-000005.partial")
    (folder / ".latest.partial").write_text("episo")
    _checkpoint(run, 2).rename(folder / ".episode-000002.replaced")  # killed between the two renames
    assert main(["checkpoints", str(run)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"left by killed writes .*\.episode-000002\.replaced, \.episode-000005\.partial, \.latest", output)
    assert list(_table(output)) == [1, 2, 3, 4]
    assert main(["checkpoints", str(run), "--clean", "--verify"]) == 0
    output = capsys.readouterr().out
    assert f"removed {folder / '.episode-000005.partial'}" in output
    assert f"put back {_checkpoint(run, 2)}" in output
    assert "removed " + str(folder / ".episode-000002") not in output
    assert _episodes(run) == [1, 2, 3, 4]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    assert "left by killed writes" not in output


def test_leftovers_of_nobody_knows_whom_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".episode-000005.partial").mkdir()
    assert main(["checkpoints", str(tmp_path), "--clean"]) == 1
    assert "says which run writes there" in capsys.readouterr().err
    assert (tmp_path / ".episode-000005.partial").exists()


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, text in ((tmp_path / "absent", "There is nothing at"), (tmp_path, "There are no checkpoints in")):
        assert main(["checkpoints", str(path)]) == 1
        assert f"{text} {path}" in capsys.readouterr().err


def test_a_run_without_checkpoints_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("runtime: {}\n")
    assert main(["checkpoints", str(tmp_path)]) == 0
    assert "holds no checkpoint yet" in capsys.readouterr().out


def test_one_checkpoint_is_no_place_to_remove_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(_checkpoint(run, 1)), "--remove", "1"]) == 1
    assert "give the folder of the run" in capsys.readouterr().err
    assert _episodes(run) == [1, 2, 3, 4]


@pytest.mark.parametrize("words", [["--keep", "0"], ["--remove", "x"], ["--keep"]])
def test_numbers_that_are_none_are_refused(run: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["checkpoints", str(run), *words])
    assert _episodes(run) == [1, 2, 3, 4]
