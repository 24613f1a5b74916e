"""Runs the blocks of one page, in the process that the page has to itself."""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from checking.commands import no_warnings, run_command
from checking.pages import Block, PageError

PROGRAM = "train.py"


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
        return "".join(run_command(block, line, files) for line in block.text.replace("\\\n", " ").splitlines())
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), no_warnings():
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
