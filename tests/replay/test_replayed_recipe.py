"""The demo's samples come out again: the warm start's model is taken from the run, where it lies.

Also on Ray, of a run of one process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from replay_cases import Replay, fingerprints, lines_of

from chatlearn.cli import main

SHORT = ["models.warm_start.args.num_steps=25", "runtime.num_episode=2", "runtime.sample_per_episode=64"]


@pytest.mark.slow
def test_samples_of_the_demo_come_out_again(in_folder: Path, replay: Replay) -> None:
    assert main(["run", "ppo", *SHORT, "runtime.save_episode_interval=1"]) == 0
    run = in_folder / "runs" / "ppo"
    program = json.loads((run / "program.json").read_text())
    assert (program["recipe"], program["words"][:3], program["folder"]) == ("ppo", SHORT, str(in_folder))
    before = fingerprints(run)
    for sample, episode, start in ((0, 1, "from the beginning of the run"), (64, 2, "checkpoints/episode-000001")):
        replayed = replay(run, sample)
        assert replayed.code == 0, replayed.out + replayed.err
        assert start in replayed.out
        logged = lines_of(run, episode)
        assert len(logged) == 16
        assert {each: replayed.lines[each] for each in logged} == logged
    replayed = replay(run, 64, "runtime_env.backend=ray", "models.policy.num_replica=2")
    assert replayed.code == 0, replayed.out + replayed.err
    assert {each: replayed.lines[each] for each in logged} == logged
    assert fingerprints(run) == before

    stage = replay(run / "warm_start", 0)
    assert stage.code == 1
    assert f"{run / 'warm_start'} is a stage of {run}, which the recipe ppo does not begin with" in stage.err
    shutil.rmtree(run / "warm_start" / "policy")
    gone = replay(run, 64)
    assert gone.code == 1
    assert f"{run / 'warm_start' / 'policy'} is gone, the model that the run in {run} began with" in gone.err
