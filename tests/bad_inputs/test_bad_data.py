"""Data sets that are missing, empty or unreadable get an error that says what, where and how to fix it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input_cases import Echo, engine_of, fails, refused

from chatlearn import DataError, Engine, EngineError, Evaluator, Trainer


def test_a_missing_data_set(tmp_path: Path) -> None:
    words = ("env_flow has no data set", "engine.set_dataset(prompts)")
    refused(engine_of(Echo("echo"), prompts=None), EngineError, *words, folder=tmp_path)
    echo = Echo("echo")
    trainer = Trainer(lambda batch: echo.train_step(batch))
    refused(Engine(None, trainer), EngineError, "no data set", "engine.set_dataset(prompts)", folder=tmp_path)
    engine = engine_of(echo).set_evaluator(Evaluator(lambda batch: echo.forward_step(batch)))
    refused(engine, EngineError, "no data set", "Evaluator(…).set_dataset(prompts)", folder=tmp_path)


@pytest.mark.parametrize("prompts", [[], (), range(0), np.zeros(0)])
def test_an_empty_data_set(prompts: Any, tmp_path: Path) -> None:
    words = ("data set of env_flow is empty", "at least one prompt")
    refused(engine_of(Echo("echo"), prompts=prompts), DataError, *words, folder=tmp_path)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (iter([1]), r"are a list_iterator.*list\(data\)"),
        ({1, 2}, "are a set.*Give a list"),
        (5, "are an int.*Give a list"),
    ],
)
def test_prompts_that_are_no_sequence(prompts: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        engine_of(Echo("echo"), prompts=prompts)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([], ["echo.build_dataset returns an empty data set for 3 prompts"]),
        (None, ["echo.build_dataset returns NoneType", "torch.utils.data.Dataset"]),
        (iter([1]), ["list_iterator", "no __getitem__ and __len__"]),
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], ["collating fails", "collate_fn", "pad"]),
        ([1.0, 2.0], ["collating gives Tensor", "dict"]),
    ],
)
def test_data_sets_that_a_module_builds(dataset: Any, words: list[str]) -> None:
    class Building(Echo):
        def build_dataset(self, prompts: Any) -> Any:
            return dataset

    fails(engine_of(Building("echo")), DataError, *words)


def test_a_sample_that_cannot_be_read() -> None:
    class Broken:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 2:
                raise OSError("no such row")
            return {"x": index}

    class Building(Echo):
        def build_dataset(self, prompts: Any) -> Any:
            return Broken()

    error = fails(engine_of(Building("echo")), DataError, "echo[0]", "sample 2", "OSError: no such row")
    assert isinstance(error.__cause__, OSError)
