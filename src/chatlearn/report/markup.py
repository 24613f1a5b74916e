"""Pieces of HTML that several sections are made of. What is given as text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from chatlearn.guards import is_dict, is_list
from chatlearn.report.charts import NUM_COLOURS, line_chart, number
from chatlearn.report.run import Points

MAX_TEXT = 600
"""Characters of a text of a sample that a page shows."""

_MAX_LINE = 160
_MAX_NUMBERS = 4
_MAX_WORD = 24
"""A longer text gets a wide column in a table."""


def panel_of(title: str, series: Mapping[str, Points], levels: Sequence[float] = ()) -> str:
    """A chart of lines with its caption; ``levels`` are marked across it where they lie among the values."""
    dotted = [name for name in series if name.startswith("eval/")]
    chart = line_chart(series, dotted, levels) or missing_note("no finite values")
    legend = legend_of(series) if len(series) > 1 else ""
    return figure_of(title if len(series) > 1 else next(iter(series)), legend + chart)


def figure_of(caption: str, content: str) -> str:
    """HTML under a caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def grid_of(panels: Sequence[str]) -> str:
    """Figures beside each other."""
    return f'<div class="grid-of-charts">{"".join(panels)}</div>' if panels else ""


def legend_of(names: Iterable[str]) -> str:
    """Names with the colours that charts give them in this order."""
    keys = [f'<li class="c{i % NUM_COLOURS}"><i></i>{escape(name)}</li>' for i, name in enumerate(names)]
    return f'<ul class="legend">{"".join(keys)}</ul>'


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text."""
    return html_table(head, [[escape(cell) for cell in row] for row in rows])


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the head is text."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{names}</tr>{body}</table></div>'


def note(text: str) -> str:
    """A remark below what it is about."""
    return f'<p class="note">{escape(text)}</p>'


def missing_note(text: str) -> str:
    """What stands where there is nothing to show."""
    return f'<p class="missing">{escape(text)}</p>'


def shown_text(text: str, limit: int = _MAX_LINE) -> str:
    """A text of a sample; one that is longer than ``limit`` can be opened, and is cut off at ``MAX_TEXT``."""
    if len(text) > limit:
        return _folded(f"{text[:100]} …", text)
    return f'<span class="text{" long" if len(text) > _MAX_WORD else ""}">{escape(text)}</span>'


def shown_value(value: Any) -> str:
    """A value of a sample; a list of many numbers can be opened."""
    if isinstance(value, float):
        return number(value)
    if is_list(value) and value and all(isinstance(each, (int, float)) for each in value):
        numbers = [number(each) for each in value]
        few = ", ".join(numbers[:_MAX_NUMBERS])
        return shown_text(few) if len(numbers) <= _MAX_NUMBERS else _folded(f"{few}, …", ", ".join(numbers))
    if is_dict(value):
        return shown_text(", ".join(f"{key}: {_plain(part)}" for key, part in value.items()))
    return shown_text(_plain(value))


def _folded(summary: str, text: str) -> str:
    more = escape(text[:MAX_TEXT]) + (" …" if len(text) > MAX_TEXT else "")
    return f'<details><summary>{escape(summary)}</summary><span class="text">{more}</span></details>'


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)
