"""The public CI runs what everybody can run: its steps are targets of the Makefile."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from read(path)["jobs"].items()


def commands(path: Path) -> list[str]:
    return [step["run"] for _, job in jobs(path) for step in job["steps"] if "run" in step]


def targets_of(command: str) -> list[str]:
    """The targets of a call of make and nothing else; of any other command an error."""
    program, *words = shlex.split(command)
    assert program == "make", f"{command!r} is no call of make"
    assert "\n" not in command.strip(), f"{command!r} is more than one command"
    assert not re.search(r"[;&|<>`$]", command), f"{command!r} is more than a call of make"
    return [word for word in words if "=" not in word]


def pythons() -> list[str]:
    matrix = read(GITHUB / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    return matrix["python"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_step_is_a_target_of_the_makefile(path: Path) -> None:
    assert commands(path)
    for command in commands(path):
        assert targets_of(command)
        assert set(targets_of(command)) <= TARGETS, f"{path.name}: {command!r} names no target of the Makefile"


@pytest.mark.parametrize(
    "command", ["pytest", "make test && make lint", "make test\nmake lint", "make test | tee log", "FOO=1 make test"]
)
def test_a_step_that_is_no_call_of_make_is_noticed(command: str) -> None:
    with pytest.raises(AssertionError, match=r"is no call|more than"):
        targets_of(command)


def test_all_that_has_to_pass_is_there() -> None:
    ci = {target for command in commands(GITHUB / "workflows" / "ci.yml") for target in targets_of(command)}
    assert ci == {"lint", "test", "docs-check", "docs", "wheel"}
    nightly = {target for command in commands(GITHUB / "workflows" / "nightly.yml") for target in targets_of(command)}
    assert nightly == {"chaos", "bench"}


def test_what_lands_and_what_is_public_are_the_same_checks() -> None:
    """`.ci/run` may do more, such as a short demo, and may build the wheel by itself."""
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    local = {word for line in re.findall(r"^make [^\n]*$", run, flags=re.M) for word in shlex.split(line)[1:2]}
    ci = {target for command in commands(GITHUB / "workflows" / "ci.yml") for target in targets_of(command)}
    assert {"lint", "test", "docs-check"} <= local
    assert local - ci <= {"demo"}


def test_the_pythons_are_those_that_the_package_promises() -> None:
    promised = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert promised == pythons()
    assert PROJECT["requires-python"] == f">={pythons()[0]}"
    assert "${{ matrix.python }}" in [
        step.get("with", {}).get("python-version")
        for step in read(GITHUB / "workflows" / "ci.yml")["jobs"]["tests"]["steps"]
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_other_jobs_take_a_promised_python_and_all_stop_by_themselves(path: Path) -> None:
    for name, job in jobs(path):
        assert job["timeout-minutes"] <= 360, name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/setup-python"):
                assert step["with"]["python-version"] in [*pythons(), "${{ matrix.python }}"]
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/checkout@v4"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for _, job in jobs(path))


FORMS = [path for path in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
KEYS = {
    "markdown": {"value"},
    "textarea": {"label", "description", "placeholder", "value", "render"},
    "input": {"label", "description", "placeholder", "value"},
    "dropdown": {"label", "description", "multiple", "options", "default"},
    "checkboxes": {"label", "description", "options"},
}
"""Attributes that GitHub's form schema knows, by the type of an element."""


def test_there_is_a_form_for_bugs_features_and_questions() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_is_one_that_github_accepts(path: Path) -> None:
    """By GitHub's documented syntax of issue forms."""
    form = read(path)
    assert set(form) <= {"name", "description", "title", "labels", "body", "assignees", "projects", "type"}
    assert form["name"]
    assert form["description"]
    inputs = [element for element in form["body"] if element["type"] != "markdown"]
    assert inputs
    assert len({element["id"] for element in inputs}) == len(inputs)
    assert len({element["attributes"]["label"] for element in inputs}) == len(inputs)
    for element in form["body"]:
        assert set(element) <= {"type", "id", "attributes", "validations"}
        assert set(element["attributes"]) <= KEYS[element["type"]]
        assert set(element.get("validations", {})) <= {"required"}
        options = element["attributes"].get("options")
        assert (options is not None) == (element["type"] in ("dropdown", "checkboxes"))
        if element["type"] == "dropdown":
            assert len(set(options)) == len(options)
        elif element["type"] == "checkboxes":
            assert all(set(option) <= {"label", "required"} and option["label"] for option in options)
