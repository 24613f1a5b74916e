"""What can't be made again, or not to the same bits, is said; nothing of the run is touched then either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from replay_cases import Replay, edit, fingerprints, lines_of, write_program

from chatlearn.cli import main

SAMPLE = 24
"""The first of episode 2."""


def _refused(run: Path, replay: Replay, sample: int = SAMPLE, *words: str) -> str:
    """Replays what can't be; returns what it says."""
    before = fingerprints(run.parent)
    replayed = replay(run, sample, *words)
    assert replayed.code == 1
    assert replayed.lines == {}
    assert fingerprints(run.parent) == before
    return " ".join(replayed.err.split())


def _change(run: Path, **values: Any) -> None:
    """Changes what the run knows of its program."""
    path = run / "program.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# -- the run and the sample --


def test_a_folder_that_is_no_run(in_folder: Path, replay: Replay) -> None:
    (in_folder / "empty" / "inner").mkdir(parents=True)
    assert "empty is not the folder of a run: it holds no config.yaml" in _refused(in_folder / "empty", replay)
    assert "absent is not the folder of a run: it is no folder" in _refused(in_folder / "absent", replay)


def test_a_sample_that_never_was(run: Path, replay: Replay) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = sum(24 + 8 * row["refill/rounds"] for row in rows) - 1
    text = _refused(run, replay, 10**9)
    assert f"{run} has no sample 1000000000" in text
    assert f"the 6 complete episodes have drawn samples 0 to {last}" in text


def test_a_sample_id_is_a_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["replay", str(run), "--sample", "first"])
    assert caught.value.code == 2
    assert "expected the sample_id of a line in samples/*.jsonl, got 'first'" in capsys.readouterr().err


def test_words_that_are_no_settings(run: Path, replay: Replay) -> None:
    text = _refused(run, replay, SAMPLE, "-c", "other.yaml", "mine")
    assert "Nothing reads '-c', 'other.yaml', 'mine'" in text
    assert "such as runtime_env.backend=local" in text


def test_a_run_that_was_moved_is_told_and_made_again(run: Path, in_folder: Path, replay: Replay) -> None:
    assert "the run was made in" not in replay(run, SAMPLE).out
    run.rename(in_folder / "moved")
    replayed = replay(in_folder / "moved", SAMPLE)
    assert replayed.code == 0
    assert f"note: the run was made in {run}, which its settings may name." in replayed.out


# -- the program --


def test_a_run_that_does_not_say_its_program(run: Path, replay: Replay) -> None:
    (run / "program.json").unlink()
    assert f"{run} does not say which program made it: program.json is missing" in _refused(run, replay)


@pytest.mark.parametrize("text", ["", "{", '{"recipes": 1}', "[]"])
def test_a_damaged_record_of_the_program(run: Path, replay: Replay, text: str) -> None:
    (run / "program.json").write_text(text)
    assert f"{run / 'program.json'} can't be read, so nobody knows which program" in _refused(run, replay)


def test_a_program_that_was_typed_in(run: Path, replay: Replay) -> None:
    _change(run, script="", problem="a notebook")
    assert f"{run} was made by a notebook, which can't be started again" in _refused(run, replay)


def test_a_program_that_is_gone(run: Path, in_folder: Path, replay: Replay) -> None:
    (in_folder / "program.py").unlink()
    assert f"the program is gone, {in_folder / 'program.py'}. Put it back there." in _refused(run, replay)


def test_a_folder_that_is_gone(run: Path, in_folder: Path, replay: Replay) -> None:
    _change(run, folder=str(in_folder / "away"))
    assert f"the folder that its program was started in is gone, {in_folder / 'away'}" in _refused(run, replay)


def test_a_program_that_has_changed_is_told_and_run(run: Path, in_folder: Path, replay: Replay) -> None:
    assert "has changed" not in replay(run, SAMPLE).out
    edit(in_folder / "program.py", lambda text: text + "# another line\n")
    replayed = replay(run, SAMPLE)
    assert replayed.code == 0
    assert f"note: {in_folder / 'program.py'} has changed since the run was made." in replayed.out


def test_versions_that_have_changed_are_told(run: Path, replay: Replay) -> None:
    versions = json.loads((run / "program.json").read_text())["versions"]
    _change(run, versions={**versions, "torch": "1.0.0"})
    out = replay(run, SAMPLE).out
    assert f"note: torch was 1.0.0 and is {versions['torch']}; the last bits may differ." in out
    assert "numpy" not in out


def test_a_program_that_does_not_come_to_the_run(run: Path, in_folder: Path, replay: Replay) -> None:
    for text, code in (("print('no engine')\n", ""), ("raise SystemExit('no data')\n", " (no data)")):
        (in_folder / "program.py").write_text(text)
        text = _refused(run, replay)
        assert f"{in_folder / 'program.py'} came to its end{code} without engine.learn() of the run" in text


def test_a_program_that_ends_the_run_before_the_episode(run: Path, in_folder: Path, replay: Replay) -> None:
    stops = "make_engine().add_callback('after_train', lambda info: info.engine.stop())"
    edit(in_folder / "program.py", lambda text: text.replace("make_engine()", stops))
    assert "came to its end before the run had come that far" in _refused(run, replay)


def test_an_error_of_the_program_is_its_own(run: Path, in_folder: Path, replay: Replay) -> None:
    edit(in_folder / "program.py", lambda text: "raise LookupError('mine')\n" + text)
    with pytest.raises(LookupError, match="mine"):
        replay(run, SAMPLE)


def test_an_error_on_the_way_offers_no_resume(
    run: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder that the recomputation writes to is gone when it ends."""
    monkeypatch.setenv("REPLAY_TEST_DRIFT", "nothing")
    with pytest.raises(Exception, match="could not convert string to float"):
        replay(run, SAMPLE)
    captured = capsys.readouterr()
    assert "Go on with" not in captured.out + captured.err


# -- settings and data --


def test_a_setting_that_was_changed_since(run: Path, in_folder: Path, replay: Replay) -> None:
    """In the program's own file; the run's value, given behind the command, puts it right."""
    edit(in_folder / "config.yaml", lambda text: text.replace('"refill_round_size": 8', '"refill_round_size": 16'))
    text = _refused(run, replay)
    assert (
        f"does not give the settings that {run / 'config.yaml'} holds: runtime.refill_round_size is 16 instead of 8"
        in text
    )
    assert "such as runtime.refill_round_size=8" in text
    assert replay(run, SAMPLE, "runtime.refill_round_size=8").code == 0


def test_a_record_of_settings_that_was_changed_by_hand(run: Path, replay: Replay) -> None:
    edit(run / "config.yaml", lambda text: text.replace("seed: 0", "seed: 3"))
    assert "runtime.seed is 0 instead of 3" in _refused(run, replay)


def test_settings_of_what_a_run_leaves_behind_may_change(run: Path, in_folder: Path, replay: Replay) -> None:
    edit(
        in_folder / "config.yaml", lambda text: text.replace('"save_episode_interval": 2', '"save_episode_interval": 3')
    )
    assert replay(run, SAMPLE).code == 0


OTHER_DATA = "make_engine(list(range(9, -1, -1)) * 4)"


def test_other_prompts_are_found_by_the_checkpoint(run: Path, in_folder: Path, replay: Replay) -> None:
    edit(in_folder / "program.py", lambda text: text.replace("make_engine()", OTHER_DATA))
    text = _refused(run, replay, min(lines_of(run, 3)))
    assert "checkpoints/episode-000002" in text
    assert "train" in text


def test_other_prompts_are_told_where_there_is_no_checkpoint(run: Path, in_folder: Path, replay: Replay) -> None:
    edit(in_folder / "program.py", lambda text: text.replace("make_engine()", OTHER_DATA))
    replayed = replay(run, 0)
    assert replayed.code == 1
    assert "the prompts differ: the data set or its order has changed since" in replayed.out
    assert "logged lines of the batch differ" in replayed.out


def _go_on(run: Path, episode: int, num_episode: int, *words: str) -> None:
    """Takes back what came after an episode, and resumes the run from there with further words."""
    (run / "result.json").write_text(json.dumps({"status": "interrupted"}))
    for later in (run / "checkpoints").glob("episode-*"):
        if int(later.name[-6:]) > episode:
            shutil.rmtree(later)
    more = [f"runtime.num_episode={num_episode}", "--resume", *words]
    assert main(["run", "program.py", "-c", "config.yaml", *more]) == 0


def test_a_change_that_was_allowed_in_between(run: Path, replay: Replay) -> None:
    """After episode 4 the refills became larger: each part of the run is made again under its own."""
    _go_on(run, 4, 8, "runtime.refill_round_size=16", "--allow-change", "runtime.refill_round_size")
    for episode in (2, 4, 5, 8):
        replayed = replay(run, min(lines_of(run, episode)))
        assert replayed.code == 0, replayed.out + replayed.err
        assert "bit for bit" in replayed.out
    shutil.rmtree(run / "checkpoints" / "episode-000004")
    text = _refused(run, replay, min(lines_of(run, 5)))
    assert "runtime.refill_round_size was 8 until episode 4, then 16, and no checkpoint in between is left" in text


def test_a_run_that_began_behind_a_checkpoint_of_another(in_folder: Path, replay: Replay) -> None:
    write_program(in_folder, data_checkpoint_path="saved", num_episode=4)
    assert main(["run", "program.py", "-c", "config.yaml"]) == 0
    shutil.rmtree(in_folder / "runs")
    assert main(["run", "program.py", "-c", "config.yaml", "runtime.num_episode=5", "runtime.exp_name=more"]) == 0
    run = in_folder / "runs" / "more"
    sample = min(lines_of(run, 5))
    replayed = replay(run, sample)
    assert replayed.code == 0, replayed.err
    assert f"from {in_folder / 'saved' / 'episode-000004'}." in replayed.out
    assert replayed.lines[sample] == lines_of(run, 5)[sample]
    shutil.rmtree(in_folder / "saved")
    text = _refused(run, replay, sample)
    assert f"{run} begins with episode 5, behind a checkpoint of another run, and has no checkpoint of its own" in text


def test_a_logged_sample_that_is_dropped_now(run: Path, in_folder: Path, replay: Replay) -> None:
    """Both digits are sampled alike, so other groups have no signal."""
    edit(in_folder / "program.py", lambda text: text.replace("make_engine()", "make_engine([8, 9] * 20)"))
    text = _refused(run, replay, 0)
    assert "Sample 0 is not among the 24 samples of episode 1 any more, though it was logged" in text
