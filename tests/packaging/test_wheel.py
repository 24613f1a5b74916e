"""The wheel holds the whole package, and works without the checkout.

Built without a network, by the setuptools of this environment. That pip installs it with its dependencies into an empty
environment is checked by .ci/run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
QUICK = [
    "models.warm_start.args.num_steps=30",
    "runtime.num_episode=1",
    "runtime.sample_per_episode=32",
    "runtime.generation_batch_size=32",
    "runtime.train_micro_batch_size=16",
    "runtime.train_global_batch_size=32",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from, since building leaves files beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "--wheel-dir", str(folder)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("chatlearn-*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def chatlearn_process(unpacked: Path, tmp_path: Path):
    """Runs Python with the unpacked wheel, in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_holds_every_file_of_the_package(source: Path, wheel: Path) -> None:
    package = source / "src"
    expected = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    expected = {name for name in expected if ".egg-info" not in name}  # building leaves one
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert {"chatlearn/py.typed", "chatlearn/recipes/ppo/ppo.yaml"} <= expected
    assert names == expected


def test_the_wheel_names_its_command_its_licence_and_its_extras(unpacked: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (info,) = unpacked.glob("chatlearn-*.dist-info")
    assert "chatlearn = chatlearn.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    lines = (info / "METADATA").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == set(project["optional-dependencies"])
    assert f"Requires-Python: {project['requires-python']}" in lines


def test_the_commands_work_from_an_empty_folder(chatlearn_process, unpacked: Path, tmp_path: Path) -> None:
    code = "import chatlearn; print(chatlearn.__file__)"
    assert Path(chatlearn_process("-c", code).strip()) == unpacked / "chatlearn" / "__init__.py"
    assert json.loads(chatlearn_process("-m", "chatlearn", "schema"))["type"] == "object"
    assert "Extras" in chatlearn_process("-m", "chatlearn", "doctor")
    printed = chatlearn_process("-m", "chatlearn", "check", "ppo")
    assert str(unpacked / "chatlearn" / "recipes" / "ppo" / "ppo.yaml") in printed  # where its values come from
    assert "ppo_policy.train_step" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_recipe_and_its_report_work_from_an_empty_folder(chatlearn_process, tmp_path: Path) -> None:
    chatlearn_process("-m", "chatlearn", "run", "ppo", *QUICK)
    run = tmp_path / "runs" / "ppo"
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["runtime"]["sample_per_episode"] == 32
    assert (run / "policy" / "config.json").is_file()
    assert chatlearn_process("-m", "chatlearn", "report", "runs/ppo").strip() == "runs/ppo/report.html"
    page = (run / "report.html").read_text(encoding="utf-8")
    style, script = (Path("src/chatlearn/report") / name for name in ("page.css", "page.js"))
    for part in (style, script):
        assert (ROOT / part).read_text(encoding="utf-8").strip() in page
