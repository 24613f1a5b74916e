"""References to environment variables in text: ``${NAME}``, ``${NAME:default}``, and ``$${`` for the text ``${``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_START = re.compile(r"\$+\{")
_BRACE = re.compile(r"[{}]")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Variable:
    """A reference to an environment variable; ``default`` is None where there is none."""

    name: str
    default: str | None


def split_references(text: str) -> list[str | Variable]:
    """The text as plain parts, escapes undone, and references.

    A default ends at the brace that closes the reference: braces inside it come in pairs.

    Raises:
        ValueError: A ``${`` begins no reference; the message shows it.
    """
    parts: list[str | Variable] = []
    position = 0
    while start := _START.search(text, position):
        parts.append(text[position : start.start()])
        if len(start[0]) > 2:
            parts.append(start[0][1:])
            position = start.end()
            continue
        end = _closing_brace(text, start.end())
        inside = _INSIDE.fullmatch(text, start.end(), end) if end else None
        if inside is None:
            raise ValueError(text[start.start() : end + 1 if end else len(text)])
        parts.append(Variable(inside[1], inside[2]))
        position = end + 1
    parts.append(text[position:])
    return [part for part in parts if part != ""]


def escape(text: str) -> str:
    """The text with ``$`` before all that reading would take for a reference or an escape."""
    return _START.sub(r"$\g<0>", text)


def _closing_brace(text: str, position: int) -> int:
    """Where the brace stands that closes the one before ``position``; 0 if there is none."""
    depth = 1
    for match in _BRACE.finditer(text, position):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    return 0
