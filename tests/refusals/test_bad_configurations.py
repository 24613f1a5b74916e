"""Configurations that do not fit a program are refused before anything starts, whether it learns or only checks.

Every kind of bad configuration once: ``tests/bad_inputs.py``. Problems of the configuration alone: ``tests/config``.
"""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
import toys
from bad_input_areas.program import Echo, engine_of
from refusal_cases import refused

import chatlearn
from chatlearn import ConfigError
from chatlearn.modules.torch import PolicyInference


def test_mistyped_settings_of_modules_all_at_once(tmp_path: Path) -> None:
    class Configured(Echo):
        class Args(pydantic.BaseModel):
            temperature: float = 1.0
            top_k: int = 0

    args = {"temprature": 0.5, "top_k": "many"}
    chatlearn.init({**toys.settings(tmp_path), "models": {"one": {"args": args}, "tow": {}}})
    refused(
        engine_of(Configured("one"), Echo("two")),
        ConfigError,
        "3 problems",
        "models.one.args.temprature",
        "`temperature`",
        "models.one.args.top_k",
        "`two` has no entry under models",
        "`tow`",
        folder=tmp_path,
    )


@pytest.mark.parametrize("absent", ["absent/model", "/absent/model", "~/absent-model-folder"])
def test_a_missing_model_folder(absent: str, tmp_path: Path) -> None:
    path = str(tmp_path / absent) if absent == "absent/model" else absent
    chatlearn.init({**toys.settings(tmp_path), "models": {"policy": {"args": {"model_path": path}}}})
    wanted = str(Path(path).expanduser())
    words = ("models.policy.args.model_path", f"no folder {wanted}", "give an existing model folder")
    refused(engine_of(PolicyInference("policy")), ConfigError, *words, folder=tmp_path)
