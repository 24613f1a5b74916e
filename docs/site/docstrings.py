"""Our docstrings as Markdown: cross references in the spelling of Sphinx become links, ``::`` begins a block of code.

``:func:`~chatlearn.algorithms.kl.kl_estimate``` and ``:meth:`start``` link to what they name where the site has it, and
are plain code otherwise.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(?P<tilde>~?)(?P<path>[\w.]+)`")
_BLOCK_AHEAD = re.compile(r"^(?P<text>.*?)[ ]?::[ ]*$", re.M)


class PlainDocstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Takes each object that has a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)


def as_markdown(text: str, obj: griffe.Object) -> str:
    """A docstring without the marks of reStructuredText.

    Args:
        text: of the docstring.
        obj: whose it is; short names are looked up from there.
    """
    return _ROLE.sub(lambda role: _link(role, obj), _BLOCK_AHEAD.sub(_announced, text))


def _announced(line: re.Match[str]) -> str:
    """The line before a block of code, which Markdown knows by its indentation."""
    return f"{line['text']}:" if line["text"].strip() else ""


def _link(role: re.Match[str], obj: griffe.Object) -> str:
    path = role["path"]
    shown = path.rpartition(".")[2] if role["tilde"] else path
    full = path if path.startswith("chatlearn.") else _resolved(path, obj)
    return f'<autoref identifier="{full}" optional><code>{shown}</code></autoref>'


def _resolved(name: str, obj: griffe.Object) -> str:
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name
