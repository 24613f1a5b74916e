"""Checks the pages: runs their code, follows their links, and keeps generated tables up to date.

    python docs/check.py             check README.md, CONTRIBUTING.md and docs/**/*.md
    python docs/check.py PAGE …      check some pages
    python docs/check.py --write     write the generated tables and messages anew, then check

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
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from checking import key_tables, messages
from checking.blocks import run_blocks
from checking.pages import ROOT, Block, PageError, all_pages, check_links, parse

TIMEOUT_SECONDS = 120


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where all pages are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="write the generated tables and messages anew")
    parser.add_argument("--jobs", type=int, default=2, help="pages side by side")
    parser.add_argument("--run-blocks", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run_blocks:
        return run_blocks([Block(**block) for block in json.loads(options.run_blocks.read_text(encoding="utf-8"))])
    if options.write:
        key_tables.write_tables()
        messages.write_messages()
    pages = [page.resolve() for page in options.pages] or all_pages()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(check_page, pages))
    return int(any(results))


def check_page(page: Path) -> int:
    """Checks one page and prints one line, or what is wrong; returns the number of problems."""
    started = time.monotonic()
    name = os.path.relpath(page, ROOT)
    text = page.read_text(encoding="utf-8")
    problems = [
        *check_links(page, text),
        *key_tables.check_tables(page, text),
        *messages.check_messages(page, text),
    ]
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


if __name__ == "__main__":
    raise SystemExit(main())
