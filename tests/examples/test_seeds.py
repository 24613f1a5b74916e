"""The programs in examples/ are those of the interface's documents, and they run.

Whether their tiny models learn is checked roughly only; the demo's tests do that in earnest.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import MAIN, WRITTEN
from programs import EXAMPLES, PROGRAMS, forget_example_modules, read_rows, run_program

import chatlearn

# -- the documents' lines of code ----------------------------------------


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(("path", "text"), [(path, text) for path, texts in WRITTEN.items() for text in texts])
def test_every_line_of_the_documents_stands_in_the_program(path: str, text: str) -> None:
    written = iter(lines_of((EXAMPLES / path).read_text(encoding="utf-8")))
    missing = [line for line in lines_of(text) if line not in written]  # consumes: each line after the one before
    assert not missing, f"{path} lacks, or has out of order: {missing[0]}"


def test_the_main_program_has_no_line_more() -> None:
    assert lines_of((EXAMPLES / "rlhf/main.py").read_text(encoding="utf-8")) == lines_of(MAIN)


# -- run as a user would ----------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, Path]]:
    """All programs, each in a copy of its folder, side by side: exit code, what was printed, the run's folder."""
    running = {}
    for name, (folder, config) in PROGRAMS.items():
        place = tmp_path_factory.mktemp(name) / folder
        shutil.copytree(EXAMPLES / folder, place, ignore=shutil.ignore_patterns("runs", "__pycache__"))
        process = subprocess.Popen(
            [sys.executable, f"{name}.py", "-c", config, f"runtime.exp_name={name}"],
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running[name] = process, place / "runs" / name
    ended = {}
    for name, (process, folder) in running.items():
        printed, _ = process.communicate(timeout=120)
        ended[name] = process.returncode, printed, folder
    return ended


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs_to_its_end(program: str, finished: dict[str, tuple[int, str, Path]]) -> None:
    code, printed, folder = finished[program]
    assert code == 0, printed
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["episode"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["num_samples"] == 256 for row in rows)
    assert rows[-1]["global_batches"] == 4 * len(rows)
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    files = sorted((folder / "samples").iterdir())
    assert len(files) == len(rows)
    samples = [sample for file in files for sample in read_rows(file)]
    assert len(samples) == 16 * len(rows)
    assert len({sample["sample_id"] for sample in samples}) == len(samples)
    assert {"query", "tokens", "response"} <= samples[0].keys()
    if program in ("main", "direct_engine"):
        assert {"logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"} <= samples[0].keys()


@pytest.mark.parametrize(("program", "metric"), [("main", "reward/reward"), ("direct_engine", "reward/reward")])
def test_ppo_programs_learn(program: str, metric: str, finished: dict[str, tuple[int, str, Path]]) -> None:
    rows = read_rows(finished[program][2] / "metrics.jsonl")
    assert rows[0][metric] < 0.2
    assert rows[-1][metric] > 0.9


def test_custom_engine_learns_from_its_reference(finished: dict[str, tuple[int, str, Path]]) -> None:
    rows = read_rows(finished["custom_engine"][2] / "metrics.jsonl")
    assert rows[-1]["policy_trainer/loss"] < 0.2 * rows[0]["policy_trainer/loss"]
    assert not any(key.startswith("eval/") for row in rows for key in row)


def test_evaluator_measures_and_changes_nothing(finished: dict[str, tuple[int, str, Path]]) -> None:
    without = read_rows(finished["custom_engine"][2] / "metrics.jsonl")
    rows = read_rows(finished["with_evaluator"][2] / "metrics.jsonl")
    measured = [row["episode"] for row in rows if "eval/reference/accuracy" in row]
    assert measured == list(range(2, len(rows) + 1, 2))
    assert [row["policy_trainer/loss"] for row in rows] == [row["policy_trainer/loss"] for row in without]


# -- every sample exactly once per epoch ----------------------------------------


@pytest.mark.parametrize("program", ["main", "direct_engine"])
@pytest.mark.parametrize(
    ("num_samples", "batch_sizes"),
    [
        (200, {"runtime": 16}),
        (200, {"runtime": 7}),
        (200, {"runtime": 16, "models.reference": 7}),
        (203, {"runtime": 7, "models.value": 16}),
    ],
)
def test_every_sample_is_trained_exactly_once_per_epoch(
    program: str, num_samples: int, batch_sizes: dict[str, int], tmp_path: Path
) -> None:
    num_episodes, num_epochs, global_size, micro_size = 2, 2, 64, 8
    run = run_program(
        tmp_path,
        program,
        f"runtime.num_episode={num_episodes}",
        f"runtime.sample_per_episode={num_samples}",
        f"runtime.num_training_epoch={num_epochs}",
        f"runtime.train_global_batch_size={global_size}",
        f"runtime.train_micro_batch_size={micro_size}",
        *(f"{place}.generation_batch_size={size}" for place, size in batch_sizes.items()),
    )
    trained: dict[Any, Counter[int]] = defaultdict(Counter)
    sizes: dict[Any, list[list[int]]] = defaultdict(list)
    iterations: dict[str, list[int]] = defaultdict(list)
    for name, info, marks, micro_sizes in run.calls:
        made_for = [micro_batch["seen_by_policy"] for micro_batch in marks]
        assert made_for == info["sample_ids"], "the rows are not those that the ids beside them say"
        key = name, info["episode"], info["epoch"]
        trained[key].update(i for micro_batch in made_for for i in micro_batch)
        sizes[key].append(micro_sizes)
        iterations[name].append(info["iteration"])

    last = num_samples - 3 * global_size
    ragged = [micro_size] * (last // micro_size) + ([last % micro_size] if last % micro_size else [])
    for name in ("ppo_policy", "ppo_value"):
        for episode in range(num_episodes):
            first = episode * num_samples
            for epoch in range(num_epochs):
                assert trained[name, episode, epoch] == dict.fromkeys(range(first, first + num_samples), 1)
                assert sizes[name, episode, epoch] == [*[[micro_size] * 8] * 3, ragged]
        assert iterations[name] == list(range(num_episodes * num_epochs * 4))
    assert len(trained) == 2 * num_episodes * num_epochs


# -- any of environment, trainer and evaluator may be None ----------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The custom flows' models, in a fresh run's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES / "custom_flow")
    forget_example_modules()
    chatlearn.init(
        {
            "models": {
                "policy": {},
                "ppo_policy": {"trainable": True, "args": {"learning_rate": 0.03}},
                "reward": {},
            },
            "runtime": {
                "num_episode": 3,
                "sample_per_episode": 10,
                "generation_batch_size": 4,
                "train_global_batch_size": 4,
                "eval_episode_interval": 2,
            },
        }
    )
    yield importlib.import_module("models")
    forget_example_modules()


WORDS = ["every", "letter", "counts"]


def parts(models: ModuleType) -> tuple[Any, Any, Any]:
    """An environment, a trainer and an evaluator; the trainer can build a data set of its own."""

    class Imitator(models.PolicyTrainer):
        def build_dataset(self, words: list[str]) -> list[dict[str, Any]]:
            queries = [models.encode(word) for word in words]
            return [{"query": q, "tokens": models.right_answers(q), "mask": (q > 0).float()} for q in queries]

    policy, trainer, reward = models.PolicyInference("policy"), Imitator("ppo_policy"), models.RewardInference("reward")
    return (
        chatlearn.Environment(lambda batch: policy.forward_step(batch)),
        chatlearn.Trainer(lambda batch: trainer.train_step(batch)),
        chatlearn.Evaluator(lambda batch: reward.eval_step(policy.eval_step(batch))).set_dataset(WORDS),
    )


@pytest.mark.parametrize("with_environment", [True, False])
@pytest.mark.parametrize("with_trainer", [True, False])
@pytest.mark.parametrize("with_evaluator", [True, False])
def test_each_part_may_be_none(
    models: ModuleType, with_environment: bool, with_trainer: bool, with_evaluator: bool
) -> None:
    environment, trainer, evaluator = parts(models)
    engine = chatlearn.Engine(
        environment if with_environment else None,
        trainer if with_trainer else None,
        evaluator if with_evaluator else None,
    )
    if with_environment or with_trainer:
        engine.set_dataset(WORDS)
    if not (with_environment or with_trainer or with_evaluator):
        with pytest.raises(chatlearn.EngineError, match="at least one"):
            engine.learn()
        return
    evaluation = engine.learn()
    assert (evaluation is not None) == with_evaluator
    rows = read_rows(engine.run.path / "metrics.jsonl")
    makes_or_trains = with_environment or with_trainer
    assert len(rows) == (3 if makes_or_trains else 1)
    assert all(row["num_samples"] == (10 if makes_or_trains else 0) for row in rows)
    assert all(("ppo_policy/loss" in row) == with_trainer for row in rows)
    assert rows[-1]["global_batches"] == (9 if with_trainer else 0)
    assert (engine.run.path / "samples").exists() == with_environment
    measured = [row["episode"] for row in rows if "eval/reward/reward" in row]
    assert measured == ([] if not with_evaluator else [2] if makes_or_trains else [1])
    if evaluation is not None:
        assert sum(len(batch["response"]) for batch in evaluation.results) == len(WORDS)
