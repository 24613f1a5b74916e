"""The checker of the pages notices what is wrong. That the pages are right is `make docs-check`, not a test."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

CHECK = Path(__file__).parent.parent / "docs" / "check.py"


@pytest.fixture(scope="module")
def checker() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("docs_check", CHECK)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["docs_check"] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECK.parent)
        spec.loader.exec_module(module)
        yield module


def _problems(checker: ModuleType, page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = folder / "page.md"
    path.write_text(page, encoding="utf-8")
    code = checker.main([str(path)])
    printed = capsys.readouterr().out
    assert code == ("blocks," not in printed)
    return printed.split("page.md:", 1)[1]


RIGHT = """\
# A page

A [link](page.md#a-page).

<!-- file: part.py -->
```python
x = 3
```

```python
from part import x
print("x is", x)
```

<!-- output -->
```text
x is …
```

<!-- raises: ValueError -->
```python
raise ValueError(f"{__name__} has x = {x}")
```

```text
has x = 3
```

```bash
python part.py
make test
```
"""


def test_a_right_page(checker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _problems(checker, RIGHT, tmp_path, capsys).startswith(" 4 blocks")


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('print("x is", x)', "print(y)", ["12: ", "NameError"]),
        ("x is …", "x was …", ["16: ", "another one", "x is 3"]),
        ("has x = 3", "has x = 4", ["25: ", "another one"]),
        ('raise ValueError(f"', 'print(f"', ["21: ", "no ValueError is raised"]),
        ("raises: ValueError", "raises: KeyError", ["ValueError, not KeyError"]),
        ("page.md#a-page", "page.md#another", ["3: ", "no heading #another"]),
        ("page.md#a-page", "nowhere.md", ["3: ", "leads nowhere"]),
        ("make test", "make tset", ["29: ", "no target 'tset'"]),
        ("python part.py", "chatlearn run pppo", ["29: ", "no recipe 'pppo'"]),
        ("python part.py", "chatlearn check ppo runtime.sed=1", ["29: ", "did you mean `seed`"]),
        ("python part.py", "python benchmarks/none.py", ["29: ", "no program"]),
        ("python part.py", "frobnicate", ["29: ", "don't know how"]),
        ("```bash", "```yaml\nruntime:\n  sed: 1\n```\n```bash", ["29: ", "did you mean `seed`"]),
    ],
)
def test_a_wrong_page(
    right: str, wrong: str, words: list[str], checker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = _problems(checker, RIGHT.replace(right, wrong, 1), tmp_path, capsys)
    assert [word for word in words if word not in problems] == [], problems


def test_an_outdated_table(checker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = "<!-- table runtime_env -->\n| key |\n<!-- end of table -->\n"
    assert "1: the table runtime_env is out of date" in _problems(checker, page, tmp_path, capsys)
    page = page.replace("| key |", checker.key_tables.make_table("runtime_env"))
    assert "0 blocks" in _problems(checker, page, tmp_path, capsys)
