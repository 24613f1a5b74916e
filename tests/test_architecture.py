"""Promises about the source itself."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import chatlearn
from chatlearn import Engine

SOURCE = Path(chatlearn.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def _calls(file: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every call."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_the_loop_fits_one_screen() -> None:
    assert len(inspect.getsource(Engine.learn).splitlines()) <= 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_file_is_too_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450


def test_nothing_is_unpickled_or_evaluated() -> None:
    """cloudpickle in the wire format is the only exception: it carries classes of ``__main__``, in memory."""
    refused = re.compile(
        r"((.*\.)?(c?pickle|dill|marshal|shelve)\.(loads?|dumps?|open|Unpickler)|torch\.(load|save)"
        r"|(np|numpy)\.load|yaml\.(load|unsafe_load|full_load)|joblib\..*|eval|exec|cloudpickle\..*)"
    )
    found = {
        (str(file.relative_to(SOURCE)), name) for file in FILES for name, _ in _calls(file) if refused.fullmatch(name)
    }
    assert {(place, name) for place, name in found if name.startswith("cloudpickle.")} <= {
        ("runtime/wire.py", "cloudpickle.dumps"),
        ("runtime/wire.py", "cloudpickle.loads"),
    }
    assert {(place, name) for place, name in found if not name.startswith("cloudpickle.")} == set()


def test_pickling_libraries_are_imported_by_the_wire_format_only() -> None:
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {
                (str(file.relative_to(SOURCE)), n) for n in names if n in ("pickle", "cloudpickle", "dill", "marshal")
            }
    assert found == {("runtime/wire.py", "cloudpickle"), ("runtime/wire.py", "pickle")}


def test_the_engine_names_no_backend() -> None:
    """It finds clusters through a dict of import paths, and special-cases no module's name."""
    for file in (SOURCE / "engine").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                text = ast.unparse(node)
                assert not re.search(r"\b(ray|vllm|transformers|runtime\.local|modules\.torch)\b", text), (
                    f"{file}: {text}"
                )


def test_no_module_catches_everything_in_silence() -> None:
    """``except Exception: pass`` and bare ``except:`` hide causes."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{file}:{node.lineno}"
                broad = ast.unparse(node.type) in ("Exception", "BaseException")
                assert not broad or any(isinstance(n, ast.Raise) for n in ast.walk(node)), f"{file}:{node.lineno}"
