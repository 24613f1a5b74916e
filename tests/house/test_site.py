"""What the site is made of, where mkdocs itself is not asked: `make docs` builds it, with warnings as errors."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import chatlearn
import chatlearn.algorithms.losses
import chatlearn.modules.torch
import chatlearn.rewards

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
REFERENCE = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("docs_site_hooks", DOCS / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["docs_site_hooks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["docs_site_hooks"]


ERRORS = {name for name in chatlearn.__all__ if name.endswith("Error")}


@pytest.mark.parametrize(
    ("module", "elsewhere"),
    [
        (chatlearn, {*ERRORS, "__version__"}),  # the page shows chatlearn.errors as a whole
        (chatlearn.modules.torch, set()),
        (chatlearn.rewards, set()),
        (chatlearn.algorithms.losses, {"Aggregation", "DPOVariant"}),  # literals: they stand in the signatures
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_public_name_is_on_a_page_of_the_reference(module: ModuleType, elsewhere: set[str]) -> None:
    named = set(re.findall(r"^::: [\w.]+\.(\w+)$", REFERENCE, flags=re.M))
    named |= set(re.findall(r"`(\w+)`", REFERENCE))
    named |= {name.strip() for names in re.findall(r"members: \[([^\]]+)\]", REFERENCE) for name in names.split(",")}
    assert set(module.__all__) - elsewhere - named == set()
    if elsewhere & ERRORS:
        assert "::: chatlearn.errors\n" in REFERENCE


def test_what_the_reference_shows_is_there() -> None:
    paths = re.findall(r"^::: ([\w.]+)$", REFERENCE, flags=re.M)
    assert len(paths) > 50
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            importlib.import_module(path)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), path


@pytest.mark.parametrize(
    ("uri", "link", "expected"),
    [
        ("index.md", "[a](quickstart.md)", "[a](quickstart.md)"),
        ("adr/0001-flows-are-traced-by-running.md", "[a](../concepts.md#flow)", "[a](../concepts.md#flow)"),
        ("index.md", "[a](../CONTRIBUTING.md#style)", "[a](repository/CONTRIBUTING.md#style)"),
        ("installation.md", "[a](../benchmarks/sync.py)", "[a](repository/benchmarks/sync.py.md)"),
        ("executors.md", "[a](../examples)", "[a](repository/examples/index.md)"),
        ("repository/README.md", "![a](docs/images/learning_curve.png)", "![a](../images/learning_curve.png)"),
        ("repository/CONTRIBUTING.md", "[a](docs/check.py)", "[a](docs/check.py.md)"),
        ("index.md", "[a](../.github/workflows/ci.yml)", "[a](repository/dot.github/workflows/ci.yml.md)"),
        ("index.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
        ("index.md", "[a](#here)", "[a](#here)"),
        ("index.md", "[a](no-such-page.md)", "[a](no-such-page.md)"),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(
    hooks: ModuleType, uri: str, link: str, expected: str
) -> None:
    assert hooks.with_links(link, uri, hooks.source_of(uri)) == expected


def test_every_page_is_in_the_navigation() -> None:
    def leaves(part: Any) -> Iterator[str]:
        for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
            yield from leaves(each)
        if isinstance(part, str):
            yield part

    named = sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert [name for name in named if not name.startswith("repository/")] == sorted(
        path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")
    )


def test_links_in_code_stay_as_they_are(hooks: ModuleType) -> None:
    page = "```text\n[a](../README.md)\n```\n"
    assert hooks.with_links(page, "index.md", DOCS / "index.md") == page


def test_marks_of_the_checker_become_titles(hooks: ModuleType) -> None:
    page = (
        "Text.\n\n<!-- file: train.py -->\n<!-- fragment -->\n```python\nx = 1\n```\n\n<!-- raises: FlowError -->\n"
        "```python\n# <!-- output -->\n```\n\n```text\nthe error\n```\n\n<!-- output -->\n```text\n1\n```\n\n"
        "```text\nplain\n```\n<!-- end of table -->\n"
    )
    assert hooks.with_titles(page) == (
        'Text.\n\n```python title="train.py"\nx = 1\n```\n\n```python title="Raises FlowError"\n'
        '# <!-- output -->\n```\n\n```text title="The error"\nthe error\n```\n\n```text title="Output"\n1\n```\n\n'
        "```text\nplain\n```\n"
    )


def test_no_mark_of_the_checker_is_left_on_any_page(hooks: ModuleType) -> None:
    pages = list(DOCS.rglob("*.md"))
    assert len(pages) > 40
    for page in pages:
        shown = hooks.with_titles(page.read_text(encoding="utf-8"))
        assert not re.search(r"^<!-- .* -->$", re.sub(r"^```.*?^```$", "", shown, flags=re.M | re.S), flags=re.M), page


def test_anchors_are_githubs(hooks: ModuleType) -> None:
    """GitHub keeps underscores and hyphens, drops other punctuation, and makes a hyphen of every space."""
    assert hooks.slug("`num_x` and C++ / Rust") == "num_x-and-c--rust"
    assert hooks.slug("The best checkpoint, and early stopping") == "the-best-checkpoint-and-early-stopping"


def test_every_page_outside_of_docs_can_be_made(hooks: ModuleType) -> None:
    outside = hooks.outside_files(sorted(DOCS.rglob("*.md")))
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} <= {path.name for path in outside}
    for path in outside:
        assert hooks.source_of(hooks.page_uri(path)) == path
        assert hooks.page_of(path).startswith(("# ", "<"))
