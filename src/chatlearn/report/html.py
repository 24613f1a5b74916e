"""One self-contained HTML page about a run: no network, no files beside it."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib import resources
from pathlib import Path

from chatlearn.report.run import RunData
from chatlearn.report.sections import SECTIONS, title_of


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run.

    Samples and metric names come from models and users: all text is escaped, and the page's policy allows its own
    script and style only.

    Args:
        run: the run's folder; files that are missing are said in their section.
        out: the page; ``report.html`` in the run's folder by default.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: ``run`` is not the folder of a run.
    """
    page = render(RunData(run))
    out = run / "report.html" if out is None else out
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.partial")
    aside.write_bytes(page.encode("utf-8", "replace"))  # text of a model may hold halves of surrogate pairs
    aside.rename(out)
    return out


def render(run: RunData) -> str:
    """The page as text."""
    style, script = (resources.files("chatlearn.report").joinpath(f"page.{kind}").read_text() for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in SECTIONS)
    sections = "\n".join(
        f'<section id="{_anchor(name)}"><h2>{name}</h2>{section(run)}</section>' for name, section in SECTIONS.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(run.folder.absolute().name)}</title><style>{style}</style></head>\n'
        f"<body><header>{title_of(run)}<nav>{links}</nav></header>\n<main>{sections}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
