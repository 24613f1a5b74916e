"""What CONTRIBUTING.md and the pages beside it promise about the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import chatlearn
from chatlearn.rewards.confined import EVALUATING

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "src" / "chatlearn"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """What stands in backquotes in the first column of the table under a row of headings."""
    table = CONTRIBUTING.split(f"| {heading} | what |\n", 1)[1].split("\n\n", 1)[0]
    return [name for row in table.splitlines()[1:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_every_folder_and_module_of_the_package_is_on_the_map() -> None:
    there = {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")}
    assert len(there) >= 18
    assert there - set(first_cells("in `src/chatlearn/`")) == set()


def test_what_is_on_the_map_is_there() -> None:
    inside, beside = first_cells("in `src/chatlearn/`"), first_cells("beside `src/`")
    assert beside
    assert [name for name in inside if not (SOURCE / name).exists()] == []
    assert [name for name in beside if not (ROOT / name).exists()] == []


def test_the_layers_of_the_page_are_those_that_are_checked() -> None:
    """The page leaves out `__main__` and files that share a layer with the contracts."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    checked = [set(re.split(r"[ |:]+", layer)) for layer in layers if layer != "__main__"]
    page = CONTRIBUTING.split("\n## Layers\n", 1)[1].split("\n## ", 1)[0]
    [line] = [paragraph for paragraph in page.split("\n\n") if paragraph.startswith("`cli` → ")]
    shown = [set(re.findall(r"`([\w.]+)`", layer)) for layer in line.split("→")]
    assert len(shown) == len(checked)
    for on_page, in_check in zip(shown, checked, strict=True):
        assert on_page <= in_check
        assert not {name for name in in_check - on_page if "runtime." not in name and "modules." not in name}


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == chatlearn.__version__ == citation["version"]
    assert project["license"] == citation["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[([\w.]+)\]", changelog, flags=re.M)[:2]
    assert newest[0] == "Unreleased"
    assert newest[1:] in ([], [chatlearn.__version__]) or chatlearn.__version__ in changelog.split("\n## ")[1]


def test_the_installation_page_has_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    table = page.split("| extra | brings | for |\n", 1)[1].split("\n\n", 1)[0]
    named = {name for row in table.splitlines()[1:] for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == set(extras)


def test_the_page_of_benchmarks_has_every_program_and_every_result() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    parts = {"bare_ray.py", "grpo_workloads.py", "handwritten.py", "handwritten_grpo.py", "handwritten_ppo.py"}
    programs = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert parts <= programs
    assert [name for name in sorted(programs - parts) if f"(../benchmarks/{name})" not in page] == []
    results = [path.name for path in (ROOT / "benchmarks" / "results").glob("*.md")]
    assert [name for name in results if f"(../benchmarks/results/{name})" not in page] == []


def test_the_rewards_that_evaluate_answers_are_those_that_are_confined_and_that_the_pages_name() -> None:
    """By the source of reasoning-gym's scorers. Not covered: helpers that a scorer calls, and other libraries."""
    import importlib.util

    spec = importlib.util.find_spec("reasoning_gym")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    evaluating = set()
    for file in Path(spec.submodule_search_locations[0]).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        scorer = text.partition("def score_answer(")[2].split("\n    def ", 1)[0]
        if re.search(r"(?<![\w.])(eval|exec)\((?!entry)|(?<!\w)(?:sympy\.|sp\.)?(parse_expr|sympify)\(", scorer):
            evaluating.add(file.stem)
    assert evaluating
    assert evaluating == EVALUATING
    section = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("**`reasoning_gym`**", 1)[1].split("\n- ", 1)[0]
    assert set(re.findall(r"`(\w+)`", section)) - {"eval"} == evaluating
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    paragraph = page.split("data sets evaluate the answer as a Python expression", 1)[1].split("\n\n", 1)[0]
    assert set(re.findall(r"`(\w+)`", paragraph)) == evaluating
