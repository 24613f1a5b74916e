"""Checks the pages: runs their code, follows their links, and keeps generated tables up to date.

    python docs/check.py             check README.md, CONTRIBUTING.md and docs/**/*.md
    python docs/check.py PAGE …      check some pages
    python docs/check.py --write     write the generated tables anew, then check

The blocks of one page run in order, in one fresh process, in a temporary folder:

- ``python`` blocks run in one namespace; tracebacks call them ``train.py``, with the block's own line numbers;
- ``yaml`` blocks are loaded as a configuration;
- ``bash`` blocks: ``chatlearn check|run`` and ``python`` on a file that the page defines are run; of other commands
    the make
  targets, recipes, files, options, extras and configuration keys have to exist.

A comment on the line before a block says more of it:

    <!-- file: train.py -->    the block is written to this file and not run
    <!-- raises: FlowError --> the block has to raise this error; the next ``text`` block shows its text
    <!-- fails -->             the commands have to fail
    <!-- output -->            this ``text`` block shows what the last block that ran has printed
    <!-- fragment -->          not run and not loaded

In a ``text`` block, ``…`` stands for anything, and folders of paths don't count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import linecache
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "train.py"
TIMEOUT_SECONDS = 120
HARMLESS = {"cd", "cat", "git", "ls", "export", "tensorboard", "source"}
"""Commands with nothing of ours to check."""


@dataclass
class Block:
    """A fenced block.

    Attributes:
        line: of the fence, from 1.
        language: after the fence.
        text: inside.
        marks: directive -> its argument.
        shown: for a block that runs: (line, text) of the ``text`` block that shows its error.
    """

    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)
    shown: tuple[int, str] | None = None


class PageError(Exception):
    """What is wrong, and on which line of the page."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where all pages are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="write the generated tables anew")
    parser.add_argument("--jobs", type=int, default=2, help="pages side by side")
    parser.add_argument("--run-blocks", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run_blocks:
        return run_blocks([Block(**block) for block in json.loads(options.run_blocks.read_text(encoding="utf-8"))])
    if options.write:
        write_tables()
    pages = [page.resolve() for page in options.pages] or all_pages()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(check_page, pages))
    return int(any(results))


def all_pages() -> list[Path]:
    """Every page of the project."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def check_page(page: Path) -> int:
    """Checks one page and prints one line, or what is wrong; returns the number of problems."""
    started = time.monotonic()
    name = os.path.relpath(page, ROOT)
    text = page.read_text(encoding="utf-8")
    problems = [*check_links(page, text), *check_tables(page, text)]
    num_blocks = 0
    try:
        blocks = parse(text)
        num_blocks = sum(block.language in ("python", "yaml", "bash") for block in blocks)
        problems += _run_page(blocks)
    except PageError as error:
        problems.append((error.line, str(error)))
    for line, problem in problems:
        print(f"{name}:{line}: {problem}", flush=True)
    if not problems:
        print(f"{name}: {num_blocks} blocks, {time.monotonic() - started:.1f} s", flush=True)
    return len(problems)


# -- pages ------------------------------------------------------------------------------------------------------------


def parse(page: str) -> list[Block]:
    """The fenced blocks of a page, with their directives."""
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    waiting: Block | None = None
    lines = iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        if mark := re.fullmatch(r"\s*<!-- (\w+)(?:: (.*?))? -->\s*", line):
            marks[mark[1]] = mark[2] or ""
        elif fence := re.fullmatch(r"(\s*)```(\w*)", line):
            text = [each.removeprefix(fence[1]) for each in _until_fence(lines, number)]
            block = Block(number, fence[2], "\n".join(text) + "\n", marks)
            marks = {}
            if unknown := set(block.marks) - {"file", "raises", "fails", "output", "fragment"}:
                raise PageError(number, f"unknown directive {', '.join(unknown)}")
            if block.language == "text" and waiting is not None:
                waiting.shown, waiting = (number, block.text), None
            elif "raises" in block.marks:
                waiting = block
            blocks.append(block)
        elif line.strip():
            marks = {}
    return blocks


def _until_fence(lines: Iterator[tuple[int, str]], start: int) -> Iterator[str]:
    for _, line in lines:
        if line.strip() == "```":
            return
        yield line
    raise PageError(start, "the block does not end")


def check_links(page: Path, text: str) -> list[tuple[int, str]]:
    """Links to files and headings that are not there."""
    problems = []
    prose = re.sub(r"^(\s*)```.*?^\s*```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.S | re.M)
    for link in re.finditer(r"\]\(([^)\s]+)\)", prose):
        target, _, heading = link[1].partition("#")
        line = prose.count("\n", 0, link.start()) + 1
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            problems.append((line, f"the link {link[1]} leads nowhere"))
        elif heading and heading not in _headings(path):
            problems.append((line, f"{target or page.name} has no heading #{heading}"))
    return problems


def _headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# -- generated tables -------------------------------------------------------------------------------------------------


def check_tables(page: Path, text: str) -> list[tuple[int, str]]:
    """Tables that differ from what the code says."""
    problems = []
    for table in _TABLE.finditer(text):
        if table[3].strip() != make_table(table[2]).strip():
            line = text.count("\n", 0, table.start()) + 1
            problems.append((line, f"the table {table[2]} is out of date; run: python docs/check.py --write"))
    return problems


def write_tables() -> None:
    """Writes all generated tables anew."""
    for page in all_pages():
        text = page.read_text(encoding="utf-8")
        new = _TABLE.sub(lambda table: f"{table[1]}\n{make_table(table[2])}\n{table[4]}", text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"{os.path.relpath(page, ROOT)}: tables written")


_TABLE = re.compile(r"^(<!-- table (\S+) -->)\n(.*?)^(<!-- end of table -->)$", flags=re.S | re.M)


def make_table(name: str) -> str:
    """The table of a section of the configuration, or of the settings (``Args``) of a ready-made module."""
    from chatlearn.config.schema import ALIASES, SECTIONS

    if name in SECTIONS:
        spelled = {new: old for old, new in ALIASES[name].items()}
        return _fields_table(SECTIONS[name], spelled)
    import chatlearn.modules.torch

    return _fields_table(getattr(chatlearn.modules.torch, name).Args, {})


def _fields_table(model: Any, spelled: dict[str, str]) -> str:
    from chatlearn.config.wording import expectation

    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, info in model.model_fields.items():
        name = f"`{key}`" + (f", `{spelled[key]}`" if key in spelled else "")
        text = (info.description or "").replace("|", "\\|")
        cells = name, expectation(info) or "see the meaning", _default(info), text[:1].upper() + text[1:]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        return {list: "`[]`", dict: "`{}`"}.get(info.default_factory, "see the meaning")
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


# -- running, in the parent -------------------------------------------------------------------------------------------


def _run_page(blocks: list[Block]) -> list[tuple[int, str]]:
    """Runs the blocks in a fresh process; returns what is wrong."""
    if not any(block.language in ("python", "yaml", "bash") for block in blocks):
        return []
    environment = {**os.environ, "PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "page"
        folder.mkdir()
        given = Path(name) / "blocks.json"
        given.write_text(json.dumps([asdict(block) for block in blocks]), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), "--run-blocks", str(given)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return [(1, f"the blocks take longer than {TIMEOUT_SECONDS} s")]
    if done.returncode == 0:
        return []
    try:
        report = json.loads(done.stdout.splitlines()[-1])
        return [(report["line"], report["text"])]
    except (IndexError, ValueError, KeyError, TypeError):
        return [(1, f"the process ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")]


# -- running, in the page's own process -------------------------------------------------------------------------------


def run_blocks(blocks: list[Block]) -> int:
    """Runs blocks in order in this process and this folder; the last line of output says what is wrong, if anything."""
    names: dict[str, Any] = {"__name__": "__main__"}
    files: set[str] = set()
    output = ""
    sys.argv = [PROGRAM]
    sys.path.insert(0, "")
    try:
        for block in blocks:
            if "output" in block.marks:
                _compare(block.text, output, block.line, "the output")
            elif block.language in ("python", "yaml", "bash") and "fragment" not in block.marks:
                output = _run_block(block, names, files)
    except PageError as error:
        print("\n" + json.dumps({"line": error.line, "text": str(error)}))
        return 1
    return 0


def _run_block(block: Block, names: dict[str, Any], files: set[str]) -> str:
    """Runs one block; returns what it printed."""
    if file := block.marks.get("file"):
        Path(file).write_text(block.text, encoding="utf-8")
        files.add(file)
        if block.language == "python":
            return ""
    if block.language == "bash":
        return "".join(_run_command(block, line, files) for line in block.text.replace("\\\n", " ").splitlines())
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), _no_warnings():
            if block.language == "yaml":
                from chatlearn.config import load_config_text

                load_config_text(block.text, block.marks.get("file") or "config.yaml")
            else:
                linecache.cache[PROGRAM] = len(block.text), None, block.text.splitlines(keepends=True), PROGRAM
                exec(compile(block.text, PROGRAM, "exec"), names)
    except BaseException as error:
        _check_error(block, error)
    else:
        if "raises" in block.marks:
            raise PageError(block.line, f"no {block.marks['raises']} is raised")
    return printed.getvalue()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """A warning about a page's code, or about ours, is an error."""
    with warnings.catch_warnings():
        for module in ("__main__", r"chatlearn\."):
            warnings.filterwarnings("error", module=module)
        yield


def _check_error(block: Block, error: BaseException) -> None:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == PROGRAM]
    line = block.line + (lines[-1] or 0 if lines else 0)
    expected = block.marks.get("raises")
    if expected is None:
        raise PageError(line, "".join(traceback.format_exception(error))) from None
    if type(error).__name__ != expected:
        raise PageError(line, f"raises {type(error).__name__}, not {expected}: {error}")
    if block.shown is not None:
        _compare(block.shown[1], f"{type(error).__name__}: {error}", block.shown[0], "the error")


def _compare(shown: str, real: str, line: int, what: str) -> None:
    """The text that a page shows has to be part of the real one."""
    pattern = r"[\s\S]*?".join(re.escape(part) for part in _plain(shown).split("…"))
    if not re.search(pattern, _plain(real)):
        raise PageError(line, f"{what} is another one:\n{real}")


def _plain(text: str) -> str:
    """Without folders in paths, and with single spaces."""
    return " ".join(re.sub(r"[^\s'\"(`=]*/(?=[\w.<-])", "", text).split())


# -- shell commands ---------------------------------------------------------------------------------------------------


def _run_command(block: Block, line: str, files: set[str]) -> str:
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
    if program == "chatlearn" and len(rest) > 1 and rest[1] in files:
        return _run(block, words)
    if program == "chatlearn":
        return _check_chatlearn(block.line, rest, files)
    raise PageError(block.line, f"don't know how to check the command {line!r}")


def _run(block: Block, words: list[str]) -> str:
    """A program of the page, or ``chatlearn … PROGRAM``: in this process, as if it were one of its own."""
    argv, known, printed = sys.argv, set(sys.modules), io.StringIO()
    sys.argv = words[1:]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), _no_warnings():
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
    import importlib

    from chatlearn.config import load_config, parse_command_line
    from chatlearn.errors import ConfigError
    from chatlearn.recipes import RECIPES

    if words == ["--help"]:
        return ""
    if len(words) < 2 or words[0] not in ("run", "check"):
        raise PageError(line, f"chatlearn {' '.join(words)}: no such command")
    path, overrides = parse_command_line(words[2:])
    if words[1].endswith(".py"):
        _check_program(line, [words[1]], files)
        source = ROOT / path if path else None
    elif words[1] in RECIPES:
        source = ROOT / path if path else importlib.import_module(RECIPES[words[1]]).CONFIG
    else:
        raise PageError(line, f"there is no recipe {words[1]!r}")
    try:
        load_config(source, [override for override in overrides if "runtime.resume" not in override])
    except ConfigError as error:
        raise PageError(line, str(error)) from None
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
