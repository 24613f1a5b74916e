"""Variants of data sets that are missing, empty or unreadable. Every kind once: ``tests/bad_inputs.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input_areas.program import Echo, engine_of, module
from refusal_cases import fails, refused

from chatlearn import DataError, Engine, EngineError, Trainer


def test_a_trainer_without_a_data_set(tmp_path: Path) -> None:
    echo = Echo("echo")
    trainer = Trainer(lambda batch: echo.train_step(batch))
    refused(Engine(None, trainer), EngineError, "no data set", "engine.set_dataset(prompts)", folder=tmp_path)


@pytest.mark.parametrize("prompts", [(), range(0), np.zeros(0)])
def test_an_empty_data_set(prompts: Any, tmp_path: Path) -> None:
    words = ("data set of env_flow is empty", "at least one prompt")
    refused(engine_of(Echo("echo"), prompts=prompts), DataError, *words, folder=tmp_path)


def test_a_number_of_prompts() -> None:
    with pytest.raises(DataError, match=r"are an int.*Give a list"):
        engine_of(Echo("echo"), prompts=5)


def test_the_exception_of_a_record_is_kept() -> None:
    class Broken:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> dict[str, Any]:
            raise OSError("no such row")

    echo = module("echo", build_dataset=lambda self, prompts: Broken())
    assert isinstance(fails(engine_of(echo), DataError, "OSError: no such row").__cause__, OSError)
