"""``chatlearn replay`` makes a sample's generation batch once more: GRPO with refills, replayed experience, dropout and
a sync after every second episode, from whichever checkpoint is left.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from replay_cases import Replay, edit, fingerprints, lines_of, write_program

from chatlearn.cli import main


def _logged(run: Path) -> dict[int, tuple[int, str]]:
    """Sample id -> episode and line, of all logged samples."""
    return {sample: (episode, line) for episode in range(1, 7) for sample, line in lines_of(run, episode).items()}


def _check_same(run: Path, replay: Replay, sample: int, *words: str) -> str:
    """Replays a logged sample, and compares what it wrote with the log itself, as text."""
    episode, _ = _logged(run)[sample]
    replayed = replay(run, sample, *words)
    assert replayed.code == 0, replayed.out + replayed.err
    logged = lines_of(run, episode)
    both = [each for each in replayed.lines if each in logged]
    assert sample in both
    assert [replayed.lines[each] for each in both] == [logged[each] for each in both]
    assert f"All {len(both)} logged lines of the batch came out again, bit for bit." in replayed.out
    return replayed.out


@pytest.mark.parametrize("episode", range(1, 7))
def test_a_batch_comes_out_again_from_the_checkpoint_before_it(run: Path, replay: Replay, episode: int) -> None:
    sample = list(lines_of(run, episode))[-1]
    out = _check_same(run, replay, sample)
    start = (episode - 1) // 2 * 2
    assert (f"checkpoints/episode-{start:06d}" in out) == (start > 0)
    assert ("with 1 episode in between" in out) == (episode in (4, 6))


def test_the_run_does_something(run: Path) -> None:
    """Otherwise equal lines would say little: policies differ, and rounds were refilled."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["weight_version"] for row in rows] == [1, 2, 2, 3, 3, 4]
    assert sum(row["refill/rounds"] for row in rows) >= 2
    assert len({row["learner/loss"] for row in rows}) == 6


def test_the_whole_generation_batch_is_made(run: Path, replay: Replay) -> None:
    """Episodes 1 and 2 keep all of their 24 samples; batches are of 8, and 12 are logged."""
    replayed = replay(run, 33)
    assert list(replayed.lines) == list(range(32, 40))
    assert [replayed.row(sample)[1:3] for sample in (32, 35)] == [["yes", "yes"]] * 2
    assert "(4 further samples of the batch are not logged)" in replayed.out


@pytest.mark.parametrize("from_checkpoint", [True, False])
def test_nothing_of_the_run_is_touched(run: Path, replay: Replay, from_checkpoint: bool) -> None:
    if not from_checkpoint:
        shutil.rmtree(run / "checkpoints")
    before = fingerprints(run.parent)
    assert len(before) > 10
    _check_same(run, replay, min(lines_of(run, 5)))
    assert fingerprints(run.parent) == before


def test_a_run_without_checkpoints_is_made_from_its_beginning(run: Path, replay: Replay) -> None:
    shutil.rmtree(run / "checkpoints")
    out = _check_same(run, replay, min(lines_of(run, 5)))
    assert "No earlier checkpoint is left: it is made once more from the beginning of the run, after 4 episodes." in out


def test_a_damaged_checkpoint_is_passed_by(run: Path, replay: Replay) -> None:
    file = next((run / "checkpoints" / "episode-000004").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    out = _check_same(run, replay, min(lines_of(run, 5)))
    assert "checkpoints/episode-000002, with 2 episodes in between" in out
    assert f"note: {run / 'checkpoints' / 'episode-000004'} is left out: " in out
    assert file.name in out


@pytest.mark.parametrize("words", [["runtime_env.isolate=true"], ["--set", "models.policy.num_replica=2"]])
def test_settings_that_say_where_modules_live_may_be_given(run: Path, replay: Replay, words: list[str]) -> None:
    _check_same(run, replay, min(lines_of(run, 3)), *words)


def test_a_run_that_trained_while_experience_arrived(in_folder: Path, replay: Replay) -> None:
    write_program(in_folder, stream_data_loader_type="dynamic", max_replay_episode=1)
    assert main(["run", "program.py", "-c", "config.yaml"]) == 0
    _check_same(in_folder / "runs" / "symbols", replay, min(lines_of(in_folder / "runs" / "symbols", 4)))


def test_a_resumed_run(run: Path, replay: Replay) -> None:
    """Its second part is another process with other words."""
    edit(run / "result.json", lambda text: text.replace("finished", "interrupted"))
    shutil.rmtree(run / "checkpoints" / "episode-000006")
    words = ["-c", "config.yaml", "runtime.num_episode=7", "--resume"]
    assert main(["run", "program.py", *words]) == 0
    assert json.loads((run / "program.json").read_text())["words"] == words
    for episode in (3, 5):
        _check_same(run, replay, min(lines_of(run, episode)))
    replayed = replay(run, min(lines_of(run, 7)))
    assert replayed.code == 0
    assert "bit for bit" in replayed.out


# -- what differs is named --


@pytest.mark.parametrize(
    ("field", "place"), [("tokens", "tokens[1]"), ("logprobs", "logprobs[1]"), ("rewards", "rewards")]
)
def test_a_bit_that_was_changed_in_the_log_is_named(run: Path, replay: Replay, field: str, place: str) -> None:
    row = json.loads(lines_of(run, 2)[29])
    was = row[field] if field == "rewards" else row[field][1]
    other = was + 1 if field == "tokens" else was * (1 + 2**-23) or 2.0**-149  # the next number of 32 bits
    changed = other if field == "rewards" else [row[field][0], other, row[field][2]]
    line = json.dumps({**row, field: changed})
    edit(run / "samples" / "episode-000002.jsonl", lambda text: text.replace(json.dumps(row), line))
    replayed = replay(run, 24)
    assert replayed.code == 1
    cells = {sample: replayed.row(sample)[1:] for sample in range(24, 32)}
    found = cells.pop(29)
    assert list(cells.values()) == [["yes", "yes", "yes"]] * 7
    others = "no: rewards" if field == "rewards" else "yes"
    assert found[:2] == ["no" if field == name else "yes" for name in ("tokens", "logprobs")]
    assert found[2].split("  ", 1)[0] == others
    assert found[2].endswith(f"{place} is {json.dumps(was)}, logged is {json.dumps(other)}")
    assert "1 of 8 logged lines of the batch differ." in replayed.out


def test_a_logged_sample_that_is_not_made_again_is_named(run: Path, replay: Replay) -> None:
    moved = json.dumps({**json.loads(lines_of(run, 2)[35]), "sample_id": 5000})
    edit(run / "samples" / "episode-000002.jsonl", lambda text: text + moved + "\n")
    replayed = replay(run, 24)
    assert replayed.code == 1
    assert "not among the episode's samples any more: 5000" in replayed.out


def test_what_a_module_takes_from_outside_shows_in_its_field(
    run: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards are a little higher now; within their groups that changes nothing, so the policy is the same."""
    monkeypatch.setenv("REPLAY_TEST_DRIFT", "0.25")
    replayed = replay(run, 24)
    assert replayed.code == 1
    for sample in range(24, 32):
        assert replayed.row(sample)[1:3] == ["yes", "yes"]
        assert replayed.row(sample)[3].startswith("no: rewards")
    assert "8 of 8 logged lines of the batch differ." in replayed.out
    assert "the first difference comes before: sample 0 of episode 1: rewards is " in replayed.out


# -- samples that were not logged --


def test_a_sample_that_was_not_logged_is_shown(run: Path, replay: Replay) -> None:
    replayed = replay(run, 46)
    assert replayed.code == 0
    made = json.loads(replayed.lines[46])
    assert f"  tokens: {made['tokens']}" in replayed.out
    assert f"  response: {made['response']!r}" in replayed.out
    assert "None of the batch was logged." in replayed.out
    assert "sample 46 was not logged, so there is nothing to compare it with" in replayed.out


def test_a_sample_that_a_step_left_out_is_no_more_there(run: Path, replay: Replay) -> None:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    refilled = next(row for row in metrics if row["refill/dropped_samples"])
    begin = sum(24 + 8 * row["refill/rounds"] for row in metrics[: refilled["episode"] - 1])
    everything = range(begin, begin + 24 + 8 * refilled["refill/rounds"])
    kept = set()
    for sample in everything[::8]:
        kept |= set(replay(run, sample).lines)
    dropped = sorted(set(everything) - kept)
    replayed = replay(run, dropped[0])
    assert replayed.code == 1
    assert f"Sample {dropped[0]} is not among the 24 samples of episode {refilled['episode']}" in replayed.err


def test_rows_that_a_step_made_of_a_sample(in_folder: Path, replay: Replay) -> None:
    """Each prompt becomes three rows with ids of their own; four of the 24 rows of an episode are logged."""
    text = (
        "import chatlearn\nimport torch\n"
        "from chatlearn import BaseModule, Engine, Environment\n\n"
        "class Thirds(BaseModule):\n"
        "    @chatlearn.step(expands=3)\n"
        "    def turns(self, data):\n"
        "        noise = self.uniforms(self.batch.sample_ids, 3)\n"
        "        rows = [row for row in range(len(noise)) for _ in range(3)]\n"
        "        return {'x': noise.reshape(-1), 'source_rows': rows}\n\n"
        "chatlearn.init()\n"
        "thirds = Thirds('thirds')\n"
        "Engine(Environment(lambda batch: thirds.turns(batch))).set_dataset(range(9)).learn()\n"
    )
    (in_folder / "program.py").write_text(text)
    sizes = ["num_episode=3", "sample_per_episode=8", "generation_batch_size=4", "log_samples=4", "exp_name=thirds"]
    assert main(["run", "program.py", *(f"runtime.{size}" for size in sizes)]) == 0
    run = in_folder / "runs" / "thirds"
    logged = lines_of(run, 2)
    assert list(logged) == [(8 << 16) + number for number in range(3)]
    for sample in ((8 << 16) + 1, (11 << 16) + 2):  # the first is logged
        replayed = replay(run, sample)
        assert replayed.code == 0, replayed.err
        assert {each: replayed.lines[each] for each in logged} == logged
        assert len(replayed.lines) == 12
        assert f"Sample {sample} was made in episode 2" in replayed.out
