"""The shell commands of pages: runs those on a page's own files, and checks what the others name."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from checking.pages import ROOT, Block, PageError

HARMLESS = {"cd", "cat", "git", "ls", "export", "tensorboard", "source"}
"""Commands with nothing of ours to check."""


def run_command(block: Block, line: str, files: set[str]) -> str:
    """Runs a line of a ``bash`` block, or checks that what it names is there; returns what it printed."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words or words[0] in HARMLESS:
        return ""
    program, *rest = words
    if program == "make":
        return _check_make(block.line, rest)
    if program == "pip" or rest[:2] == ["-m", "pip"]:
        return _check_pip(block.line, rest)
    if program == "python" and rest[:2] == ["-m", "venv"]:
        return ""
    if program == "python" and rest[:2] == ["-m", "pdb"]:
        return _check_program(block.line, rest[2:], files)
    if program == "python" and rest and rest[0] in files:
        return _run(block, words)
    if program == "python":
        return _check_program(block.line, rest, files)
    if program == "chatlearn" and len(rest) > 1 and (rest[1] in files or Path(rest[1]).is_dir()):
        return _run(block, words)
    if program == "chatlearn":
        return _check_chatlearn(block.line, rest, files)
    raise PageError(block.line, f"don't know how to check the command {line!r}")


def _run(block: Block, words: list[str]) -> str:
    """A program of the page, or ``chatlearn … PROGRAM``: in this process, as if it were one of its own."""
    argv, known, printed = sys.argv, set(sys.modules), io.StringIO()
    sys.argv = words[1:]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), no_warnings():
            if words[0] == "chatlearn":
                from chatlearn.cli import main as chatlearn

                code = chatlearn(words[1:])
            else:
                code = runpy.run_path(words[1], run_name="__main__") and 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = 1
        printed.write(traceback.format_exc())
    finally:
        sys.argv = argv
        for name in set(sys.modules) - known:  # another run reads the page's files anew
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path.cwd():
                del sys.modules[name]
    if bool(code) != ("fails" in block.marks):
        happens = f"ends with {code}" if code else "does not fail"
        raise PageError(block.line, f"{' '.join(words)} {happens}:\n{printed.getvalue()[-4000:]}")
    return printed.getvalue()


def _check_make(line: int, words: list[str]) -> str:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for word in words:
        if "=" not in word and word not in targets:
            raise PageError(line, f"make has no target {word!r}")
        if word.startswith("ARGS=") and "demo" in words:
            _check_chatlearn(line, ["run", "ppo", *shlex.split(word.removeprefix("ARGS="))], set())
    return ""


def _check_pip(line: int, words: list[str]) -> str:
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:\.|chatlearn)\[([\w,]+)\]", " ".join(words)):
        if unknown := set(extras.split(",")) - set(known):
            raise PageError(line, f"there is no extra {', '.join(unknown)}")
    return ""


def _check_program(line: int, words: list[str], files: set[str]) -> str:
    """A program of the repository: its files are there, and it knows its options."""
    program = ROOT / (words[0] if words else "")
    if words and words[0] in files:
        return ""
    if not program.is_file():
        raise PageError(line, f"there is no program {' '.join(words[:1])}")
    text = program.read_text(encoding="utf-8")
    for word in words[1:]:
        if word.startswith("--") and word.split("=")[0] not in text:
            raise PageError(line, f"{words[0]} has no option {word}")
        if word.endswith((".yaml", ".py")) and not (ROOT / word).is_file():
            raise PageError(line, f"there is no file {word}")
    return ""


def _check_chatlearn(line: int, words: list[str], files: set[str]) -> str:
    """A recipe or a program of the repository: configuration file and settings are right."""

    from chatlearn.cli import COMMANDS
    from chatlearn.cli.command import RUN
    from chatlearn.config import load_config, parse_command_line
    from chatlearn.errors import ConfigError
    from chatlearn.recipes import RECIPES

    if words == ["--help"]:
        return ""
    if not words or words[0] not in COMMANDS:
        raise PageError(line, f"chatlearn {' '.join(words)}: no such command")
    if not COMMANDS[words[0]].takes_settings or COMMANDS[words[0]].what == RUN:
        return ""
    what = words[1] if len(words) > 1 and not words[1].startswith("-") else ""
    paths, overrides = parse_command_line(words[2 if what else 1 :])
    source: list[Path] | None = [Path(path) if path in files else ROOT / path for path in paths]
    if what.endswith(".py"):
        _check_program(line, [what], files)
    elif what in RECIPES:
        source = source or [RECIPES[what].config_path]
    elif what or not COMMANDS[words[0]].optional:
        raise PageError(line, f"there is no recipe {what!r}")
    try:
        load_config(source, [override for override in overrides if "runtime.resume" not in override])
    except ConfigError as error:
        raise PageError(line, str(error)) from None
    return ""


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """A warning about a page's code, or about ours, is an error."""
    with warnings.catch_warnings():
        for module in ("__main__", r"checking\.", r"chatlearn\."):
            warnings.filterwarnings("error", module=module)
        yield
