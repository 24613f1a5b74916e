"""What the pages are, and what stands in them: blocks with their directives, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


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


def all_pages() -> list[Path]:
    """Every page of the project."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


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
