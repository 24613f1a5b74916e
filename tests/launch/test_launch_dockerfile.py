"""`chatlearn launch dockerfile`: its instructions, versions and user, and that what it copies is there.

Not covered: a build.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tomllib
from pathlib import Path

import pytest

from chatlearn.cli import main
from chatlearn.launch.dockerfile import RAY_VERSION

ROOT = Path(__file__).parents[2]

INSTRUCTIONS = {"FROM", "RUN", "ENV", "COPY", "USER", "WORKDIR", "CMD"}


def _instructions(tmp_path: Path, *options: str) -> list[tuple[str, str]]:
    """(instruction, its arguments), with continued lines joined and comments dropped."""
    path = tmp_path / "Dockerfile"
    assert main(["launch", "dockerfile", "-o", str(path), *options]) == 0
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert {name for name, _ in lines} <= INSTRUCTIONS
    return [(name, " ".join(rest.split())) for name, rest in lines]


def _all(found: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for each, rest in found if each == name]


def test_the_versions_are_those_of_this_environment(tmp_path: Path) -> None:
    found = _instructions(tmp_path)
    assert found[0] == ("FROM", f"python:{platform.python_version()}-slim")
    runs = " ".join(_all(found, "RUN"))
    assert f'"ray[default]=={importlib.metadata.version("ray")}"' in runs
    assert f'"torch=={importlib.metadata.version("torch").partition("+")[0]}"' in runs


def test_the_ray_without_an_installed_one_is_the_tested_one() -> None:
    assert importlib.metadata.version("ray") == RAY_VERSION


def test_cuda_or_none(tmp_path: Path) -> None:
    for options, index in (((), "cu128"), (("--cuda", "13.0"), "cu130"), (("--cpu",), "cpu")):
        found = _instructions(tmp_path, *options)
        assert f"--index-url https://download.pytorch.org/whl/{index} " in " ".join(_all(found, "RUN"))
        assert ("NVIDIA_VISIBLE_DEVICES=all" in " ".join(_all(found, "ENV"))) == (index != "cpu")


def test_the_user_has_no_rights_and_a_number(tmp_path: Path) -> None:
    """Kubernetes' ``runAsNonRoot`` understands numbers only."""
    found = _instructions(tmp_path)
    names = [name for name, _ in found]
    assert _all(found, "USER") == ["1000"]
    assert "RUN" not in names[names.index("USER") :]


def test_what_is_copied_is_there_and_is_no_secret(tmp_path: Path) -> None:
    copied = [word for rest in _all(_instructions(tmp_path), "COPY") for word in rest.split()[:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "src"}
    assert [word for word in copied if not (ROOT / word).exists()] == []


def test_nothing_in_it_looks_like_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5ecre7")
    _instructions(tmp_path)
    text = (tmp_path / "Dockerfile").read_text()
    assert not re.search(r"5ecre7|token|password|secret|api_?key|[0-9a-f]{32}", text, flags=re.I)


def test_the_extras_are_those_of_the_project(tmp_path: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extras,) = re.findall(r"/opt/chatlearn\[([\w,]+)\]", " ".join(_all(_instructions(tmp_path), "RUN")))
    assert set(extras.split(",")) <= set(known)
    (extras,) = re.findall(r"chatlearn\[([\w,]+)\]", " ".join(_all(_instructions(tmp_path, "--extras", "lora"), "RUN")))
    assert extras == "ray,lora"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cuda", "12"], "--cuda 12: give a version such as 12.8, or --cpu."),
        (["--extras", "hf;rm"], "'hf;rm' is no name of an extra"),
        (["-o", "/proc/x/Dockerfile"], "/proc/x/Dockerfile can't be written"),
    ],
)
def test_unusable_values(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "dockerfile", *options]) == 1
    assert message in capsys.readouterr().err
