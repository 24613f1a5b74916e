"""Rollout replicas die at random moments; the run's record does not change. ``replicas.py`` does this more often."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import replicas


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[replicas.Outcome]:
    """A run in which nothing dies; its Ray serves the others too."""
    with replicas.one_ray():
        yield replicas.run(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("seed", range(4))
def test_the_record_does_not_change_when_a_rollout_replica_is_killed(
    seed: int, alone: replicas.Outcome, tmp_path: Path
) -> None:
    kill, outcome = replicas.disturbed(tmp_path, random.Random(seed), alone.seconds)
    assert replicas.differences(alone.record, outcome.record) == [], f"{kill}\n{outcome.output}"


def test_the_record_does_not_change_when_the_trainer_is_killed_and_the_run_restarts(
    alone: replicas.Outcome, tmp_path: Path
) -> None:
    """It dies in the fourth episode, two after the checkpoint that it goes on from."""
    kill = replicas.Kill(0, 0.0, module="learner", episode=3)
    outcome = replicas.run(tmp_path, kill, max_restarts=1)
    assert kill.place.startswith("episode 4")
    assert outcome.output.count("(restart 1 of 1)") == 1
    assert replicas.differences(alone.record, outcome.record) == [], outcome.output
