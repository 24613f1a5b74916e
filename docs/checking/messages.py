"""The page of error messages, which is generated from the table of bad inputs in ``tests/bad_inputs.py``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

from checking.pages import ROOT

PAGE = ROOT / "docs" / "error-messages.md"

HEAD = """\
# Error messages

What chatlearn says when something is wrong: {count} mistakes and the message that each one gets. Search this page for
the words of your message; the heading above it says what is behind it.

Every error is a `chatlearn.ChatLearnError`. It says what is wrong, where (a line, a key, a step, a sample) and the way
out. Mistakes in configurations and flows are found before anything starts, and those of one configuration come all
together. Where your own code raises, its traceback stands first.

In the messages here, `my.yaml` and `train.py` stand for your files; lines of `train.py` count from where the mistake's
example begins.
"""


def check_messages(page: Path, text: str) -> list[tuple[int, str]]:
    """Says where the page differs from what the code says, if this is the page."""
    if page != PAGE or text == (new := make_page()):
        return []
    lines = zip_longest(text.splitlines(), new.splitlines())
    line = next((number for number, (old, right) in enumerate(lines, 1) if old != right), 1)
    return [(line, "the messages are out of date; run: python docs/check.py --write")]


def write_messages() -> None:
    """Writes the page anew."""
    new = make_page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        PAGE.write_text(new, encoding="utf-8")
        print(f"{os.path.relpath(PAGE, ROOT)}: messages written")


def make_page() -> str:
    """The page. Causes act in a process of their own, since they change what belongs to all of it."""
    search = filter(None, [str(ROOT / "docs"), str(ROOT / "tests"), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "checking.messages"]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def _print_page() -> None:
    from bad_inputs import AREAS, run

    parts = [HEAD.format(count=sum(len(area.causes) for area in AREAS))]
    for area in AREAS:
        parts.append(f"\n## {area.title}\n")
        for cause in area.causes:
            with tempfile.TemporaryDirectory() as folder:
                message = run(area, cause, Path(folder).resolve()).message
            parts.append(
                f"\n### {cause.sentence.removesuffix('.')}\n\n```text\n{cause.kind.__name__}: {message}\n```\n"
            )
    sys.stdout.write("".join(parts))


if __name__ == "__main__":
    _print_page()
