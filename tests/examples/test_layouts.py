"""The documents' programs give the same bits on any layout: threads, replicas, and the loader of the trainers' data."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from programs import INFERENCE, PROGRAMS, Finished, read_rows, run_program
from watching import Room, Visit

LAYOUTS = list(itertools.product((1, 3), (1, 3), ("fixed", "dynamic")))
EPISODES, PER_EPISODE, EPOCHS = 3, 60, 2

SIZES = [
    f"runtime.num_episode={EPISODES}",
    f"runtime.sample_per_episode={PER_EPISODE}",
    f"runtime.num_training_epoch={EPOCHS}",
    "runtime.generation_batch_size=16",
    "models.reference.generation_batch_size=7",
    "runtime.train_global_batch_size=24",
    "runtime.train_micro_batch_size=8",
    "runtime.eval_episode_interval=1",
]
"""A short run in which nothing divides anything."""


class Outcome(NamedTuple):
    """What must not depend on the layout.

    Attributes:
        trained: name of a trainer -> its ``train_step`` calls in order, with ids and weight versions of each row.
        weights: name of a model -> SHA-256 of the weights of each of its replicas, as a set.
        metrics: the rows of ``metrics.jsonl``, times apart.
        samples: what was written under ``samples/``.
    """

    trained: dict[str, list[Any]]
    weights: dict[str, set[str]]
    metrics: list[dict[str, Any]]
    samples: dict[str, str]


def settings_of(program: str, threads: int, replicas: int, loader: str) -> list[str]:
    """A layout as it stands on the command line."""
    several = [f"models.{name}.num_replica={replicas}" for name in INFERENCE[program]]
    return [f"runtime_env.local_threads={threads}", f"runtime.stream_data_loader_type={loader}", *several]


def outcome_of(run: Finished) -> Outcome:
    trained: dict[str, list[Any]] = {}
    for call in run.calls:
        trained.setdefault(call.name, []).append(call[1:])
    weights: dict[str, set[str]] = {}
    for replica in run.replicas:
        if hasattr(replica, "model"):
            weights.setdefault(replica.name, set()).add(digest(replica.model))
    rows = read_rows(run.path / "metrics.jsonl")
    metrics = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    samples = {path.name: path.read_text(encoding="utf-8") for path in (run.path / "samples").iterdir()}
    return Outcome(trained, weights, metrics, samples)


def digest(model: Any) -> str:
    """SHA-256 of all weights, bit for bit."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """(program, threads, replicas, loader) -> what comes out; each is run once."""
    folder = tmp_path_factory.mktemp("programs")

    @cache
    def of(program: str, *layout: Any) -> Outcome:
        return outcome_of(run_program(folder, program, *SIZES, *settings_of(program, *layout)))

    return of


@pytest.mark.parametrize(("threads", "replicas", "loader"), LAYOUTS[1:])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_layout_changes_no_bit(
    program: str, threads: int, replicas: int, loader: str, outcome: Callable[..., Outcome]
) -> None:
    found, plain = outcome(program, threads, replicas, loader), outcome(program, *LAYOUTS[0])
    assert found.trained == plain.trained
    assert found.weights == plain.weights
    assert found.metrics == plain.metrics
    assert found.samples == plain.samples


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_record_is_that_of_a_run_that_trains(program: str, outcome: Callable[..., Outcome]) -> None:
    """Otherwise equal records and equal weights would say little."""
    found = outcome(program, *LAYOUTS[-1])
    for calls in found.trained.values():
        assert len(calls) == EPISODES * EPOCHS * 3  # 60 samples in 24, 24 and 12
        for info, marks, sizes in calls:
            assert sizes == ([8, 8, 8] if info["iteration"] % 3 < 2 else [8, 4])
            for ids, micro in zip(info["sample_ids"], marks, strict=True):
                assert all(micro[f"seen_by_{name}"] == ids for name in INFERENCE[program])
    assert all(len(digests) == 1 for digests in found.weights.values()), "replicas of a model have the same weights"
    losses = [row[key] for row in found.metrics for key in row if key.endswith("/loss")]
    assert len(set(losses)) == len(losses) >= EPISODES


@pytest.mark.parametrize(("trainer", "model"), [("ppo_policy", "policy"), ("ppo_value", "value")])
@pytest.mark.parametrize("program", ["main", "direct_engine"])
def test_the_record_holds_weights_that_moved_with_each_sync(
    program: str, trainer: str, model: str, outcome: Callable[..., Outcome]
) -> None:
    found = outcome(program, *LAYOUTS[-1])
    assert found.weights[trainer] == found.weights[model] != found.weights["reference"]
    for info, marks, _ in found.trained[trainer]:
        # the first sync comes before the first episode
        assert {version for micro in marks for version in micro[f"version_of_{model}"]} == {info["episode"] + 1}


# -- calls do overlap ----------------------------------------

MEETINGS: dict[str, tuple[int, str, list[set[Visit]]]] = {
    "two models": (1, "fixed", [{("reference[0]", 0), ("value[0]", 0)}]),
    "two models, each time": (1, "dynamic", [{("reference[0]", i), ("value[0]", i)} for i in range(12)]),
    "the two trainers": (1, "fixed", [{("ppo_policy[0]", i), ("ppo_value[0]", i)} for i in range(18)]),
    "three replicas of the policy": (3, "fixed", [{("policy[0]", 0), ("policy[1]", 0), ("policy[2]", 0)}]),
    "a trainer and the last rollout of the episode": (1, "dynamic", [{("policy[0]", 3), ("ppo_policy[0]", 0)}]),
    "the same, with replicas": (3, "dynamic", [{("policy[0]", 1), ("ppo_value[0]", 0)}]),
}
"""What is asked for: replicas, loader, and visits that have to come about at the same moment.

An episode has 4 rollouts (16, 16, 16 and 12 samples), numbered on through the run; rollout i goes to replica i modulo
their number. The first global batch has the 24 samples of the first two.
"""


@pytest.mark.parametrize(("replicas", "loader", "meetings"), MEETINGS.values(), ids=MEETINGS)
@pytest.mark.parametrize("program", ["main", "direct_engine"])
def test_calls_overlap_on_threads(
    program: str,
    replicas: int,
    loader: str,
    meetings: list[set[Visit]],
    outcome: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    """Steps that wait inside of their bodies for each other would fail if they ever ran in turn."""
    room = Room(meetings)
    sizes = [text for text in SIZES if not text.startswith("models.reference")]
    run = run_program(tmp_path, program, *sizes, *settings_of(program, 3, replicas, loader), room=room)
    for group in meetings:
        labels = sorted(label for label, _ in group)
        assert {frozenset(pair) for pair in itertools.combinations(labels, 2)} <= room.together
    assert outcome_of(run).trained == outcome(program, *LAYOUTS[0]).trained


@pytest.mark.parametrize("loader", ["fixed", "dynamic"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_with_one_thread_no_two_calls_overlap(program: str, loader: str, tmp_path: Path) -> None:
    room = Room()
    run_program(tmp_path, program, *SIZES, *settings_of(program, 1, 3, loader), room=room)
    assert len(room.entered) > 20
    assert room.together == set()


@pytest.mark.parametrize("program", ["main", "direct_engine"])
def test_with_the_fixed_loader_training_waits_for_the_last_rollout(program: str, tmp_path: Path) -> None:
    """Here reference and value meet each time, so that calls do overlap, but no trainer meets any of them."""
    room = Room([{("reference[0]", i), ("value[0]", i)} for i in range(12)])
    sizes = [text for text in SIZES if not text.startswith("models.reference")]
    run_program(tmp_path, program, *sizes, *settings_of(program, 3, 1, "fixed"), room=room)
    assert frozenset(("reference[0]", "value[0]")) in room.together
    trainers = {"ppo_policy[0]", "ppo_value[0]"}
    assert all(pair == trainers for pair in room.together if pair & trainers)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_bit_depends_on_which_step_ends_first(
    program: str, seed: int, outcome: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Each step takes up to 3 ms longer, by chance, so that steps overlap and end in ever other orders."""
    room = Room(delays=random.Random(seed))
    run = run_program(tmp_path, program, *SIZES, *settings_of(program, 3, 3, "dynamic"), room=room)
    assert outcome_of(run) == outcome(program, *LAYOUTS[0])


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_models_of_the_examples_are_thread_safe(program: str, tmp_path: Path) -> None:
    """Or they would stay on the driver's thread, and the layouts above would compare a run with itself."""
    run = run_program(tmp_path, program, "runtime.num_episode=1", "runtime.sample_per_episode=4")
    assert {type(replica).thread_safe for replica in run.replicas} == {True}
