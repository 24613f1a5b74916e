"""Runs that are killed and resumed leave what the undisturbed run leaves, bit for bit; so do runs that are disturbed
otherwise.

``kills.py`` and ``disturbances.py`` make many of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import disturbances
import kills
import pytest
from kill_children import pool
from kill_program import Settings


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """What runs are forked from."""
    with pool(1) as processes:
        yield processes


@pytest.fixture(scope="module")
def alone(processes: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> kills.Alone:
    """The undisturbed run."""
    settings = Settings(str(tmp_path_factory.mktemp("kills") / "run"))
    return processes.submit(kills.run_alone, settings).result()


def test_the_undisturbed_run_has_something_to_lose(alone: kills.Alone) -> None:
    assert [row["episode"] for row in alone.record["metrics"]] == list(range(1, 9))
    assert alone.record["checkpoints"] == {
        "complete": ["episode-000002", "episode-000007", "episode-000008"],
        "latest": "episode-000008\n",
        "best": "episode-000002\n",
    }
    parts = {name.partition("/")[2] for name in alone.record["states"] if name.startswith("episode-000007")}
    assert {"policy.state.rank0.safetensors", "shared.json", "replay.json", "judge.files/counts.json"} <= parts
    assert [step for step, _ in alone.record["tensorboard"]["judge/reward"]] == list(range(1, 9))
    assert alone.record["stray"] == []


@pytest.mark.parametrize("number", range(2, 8))
def test_a_run_that_is_killed_and_resumed_ends_as_if_nothing_had_happened(
    number: int, alone: kills.Alone, processes: ProcessPoolExecutor
) -> None:
    story = processes.submit(kills.killed_run, number, alone, 0).result()
    assert story.kills
    assert story.problems == [], story.row


@pytest.mark.parametrize("kind", disturbances.KINDS)
def test_a_disturbed_run_ends_as_it_should_and_goes_on_exactly(
    kind: str, alone: kills.Alone, processes: ProcessPoolExecutor
) -> None:
    run = processes.submit(disturbances.disturbed_run, kind, 2, alone, 0).result()
    assert run.problems == [], run.row


@pytest.fixture(scope="module")
def alone_on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kills.Alone]:
    """The undisturbed run on Ray; its Ray serves the others too."""
    with kills.one_ray() as address:
        settings = Settings(str(tmp_path_factory.mktemp("ray") / "run"), "ray", address)
        yield kills.run_alone(settings, forked=False)


def test_ray_makes_the_record_that_one_process_makes(alone: kills.Alone, alone_on_ray: kills.Alone) -> None:
    assert kills.differences(alone.record, alone_on_ray.record) == []


@pytest.mark.parametrize("number", [7, 16], ids=["worker", "driver"])
def test_a_run_on_ray_that_loses_its_driver_or_a_trainer_ends_as_if_nothing_had_happened(
    number: int, alone_on_ray: kills.Alone
) -> None:
    story = kills.killed_run(number, alone_on_ray, 0)
    assert story.kills
    assert story.problems == [], story.row
