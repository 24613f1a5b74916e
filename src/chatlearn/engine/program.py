"""What program a run is: which recipe, script or module, with which words, so that it can be run again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chatlearn.errors import CheckpointError

FILE = "program.json"
_PACKAGES = ("chatlearn", "torch", "numpy", "transformers")


@dataclass(frozen=True)
class Program:
    """How a run was started. One of ``recipe``, ``script`` and ``module`` says what; else ``problem`` says why not.

    Attributes:
        recipe: name of a recipe, as in ``chatlearn run ppo``.
        script: absolute path of a Python file.
        module: name of a module, as in ``python -m my_package.train``.
        problem: what the program was, where it can't be started again.
        words: behind it on the command line.
        folder: that it was started in.
        sha256: of the script.
        earlier: folders of the runs that the process had come to before this one.
        versions: of Python and of the packages that decide the last bits.
        run: the folder of the run, as it was called then.
    """

    recipe: str = ""
    script: str = ""
    module: str = ""
    problem: str = ""
    words: list[str] = field(default_factory=list[str])
    folder: str = ""
    sha256: str = ""
    earlier: list[str] = field(default_factory=list[str])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    run: str = ""

    @property
    def name(self) -> str:
        """What it is called on a command line."""
        return self.recipe or self.script or (f"-m {self.module}" if self.module else self.problem)


@dataclass
class _Running:
    """What is running in this process: a recipe, or whatever ``__main__`` is; and the runs it has come to."""

    recipe: str = ""
    words: Sequence[str] = ()
    runs: list[Path] = field(default_factory=list[Path])


_of_process = _Running()
_running: ContextVar[_Running] = ContextVar("running", default=_of_process)


@contextmanager
def running(recipe: str = "", words: Sequence[str] = ()) -> Generator[None]:
    """Inside, runs are those of a program that begins here: a recipe with these words, or without one ``__main__``."""
    token = _running.set(_Running(recipe, tuple(words)))
    try:
        yield
    finally:
        _running.reset(token)


def note_run(folder: Path) -> None:
    """The program has come to a run."""
    _running.get().runs.append(folder)


def write_program(folder: Path) -> None:
    """Writes ``program.json`` into the folder of the run that the program has come to last."""
    aside = folder / f"{FILE}.partial"
    aside.write_text(json.dumps(asdict(current_program(folder)), indent=1) + "\n", encoding="utf-8")
    aside.rename(folder / FILE)


def read_program(folder: Path) -> Program:
    """What :func:`write_program` wrote.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    path = folder / FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Program(**content)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} does not say which program made it: {FILE} is missing. A run can be recomputed if this version "
            "of chatlearn or a later one has begun it or gone on with it."
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} can't be read, so nobody knows which program made the run: {error}") from None


def current_program(run: Path) -> Program:
    """The program of this process, for a run of it."""
    own = _running.get()
    started = Program(folder=os.getcwd(), versions=dict(versions()), run=str(run), words=sys.argv[1:])
    if own.recipe:
        return replace(started, recipe=own.recipe, words=list(own.words))
    main = sys.modules.get("__main__")
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    earlier = [str(path) for path in own.runs[:-1]]
    if spec is not None and spec.name:
        return replace(started, module=spec.name.removesuffix(".__main__"), earlier=earlier)
    if file and os.path.isfile(file):
        script = Path(file).absolute()
        return replace(started, script=str(script), sha256=digest(script), earlier=earlier)
    return replace(started, problem=_what_it_is())


def _what_it_is() -> str:
    """What a ``__main__`` without a file is."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    if hasattr(sys, "ps1") or "IPython" in sys.modules:
        return "an interactive session"
    return "the text behind `python -c`" if sys.argv[:1] == ["-c"] else "no file (its text came from elsewhere)"


def digest(script: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(script.read_bytes()).hexdigest()


@cache
def versions() -> Mapping[str, str]:
    """Of Python and of the packages that decide the last bits of a run; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return MappingProxyType({**found, "machine": platform.machine()})


def changes_since(program: Program) -> list[str]:
    """What is not as it was when the run was made, one line each: the script's text, versions of packages."""
    lines: list[str] = []
    if program.script and digest(Path(program.script)) != program.sha256:
        lines.append(f"{program.script} has changed since the run was made.")
    lines += [
        f"{name} was {was or 'not installed'} and is {now or 'not installed'}; the last bits may differ."
        for name, was, now in _changed(program.versions, versions())
    ]
    return lines


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name, ""), now.get(name, "")) for name in names if before.get(name) != now.get(name)]
