"""The doctor's report. GPUs are not covered."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import tomllib
from pathlib import Path

import pytest
import torch

from chatlearn.observe import doctor as module
from chatlearn.observe.doctor import EXTRAS, doctor

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    report = doctor(tmp_path / "a" / "b")
    for part in (
        f"Python {platform.python_version()}",
        f"torch {importlib.metadata.version('torch')}",
        f"{len(os.sched_getaffinity(0))} CPU cores" if hasattr(os, "sched_getaffinity") else "CPU cores",
        "GiB memory",
        "OMP_NUM_THREADS=3",
        "MKL_NUM_THREADS is not set",
        f"wandb: wandb {importlib.metadata.version('wandb')}",
        f"{tmp_path}/a/b can be written",
    ):
        assert part in report
    assert ("no CUDA device" in report) == (torch.cuda.device_count() == 0)
    assert not (tmp_path / "a").exists()


def test_a_missing_extra_says_what_it_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._version
    monkeypatch.setattr(module, "_version", lambda name: None if name == "trackio" else real(name))
    (line,) = [line for line in doctor().splitlines() if line.startswith("  trackio:")]
    assert line == "  trackio: missing trackio (for metrics in Trackio): pip install 'chatlearn[trackio]'"


def test_the_extras_are_those_of_the_project() -> None:
    extras = {name: names for name, names in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
    assert set(EXTRAS) == set(extras)
    for extra, (distributions, _) in EXTRAS.items():
        required = {re.split(r"[\[>=<]", text)[0] for text in extras[extra]} - {"chatlearn"}
        assert set(distributions) == required


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be written" in doctor(tmp_path / "file" / "runs")


def test_whatever_is_broken_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "device_count", broken)
    report = doctor()
    assert "could not be found out: RuntimeError: the driver is too old" in report
    assert "Output" in report
