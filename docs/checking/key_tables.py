"""The tables of configuration keys, which are generated from the code."""

from __future__ import annotations

import json
import os
import re
import typing
from pathlib import Path
from typing import Any

from checking.pages import ROOT, all_pages


def check_tables(page: Path, text: str) -> list[tuple[int, str]]:
    """Tables that differ from what the code says."""
    problems = []
    for table in _TABLE.finditer(text):
        if table[3].strip() != make_table(table[2]).strip():
            line = text.count("\n", 0, table.start()) + 1
            problems.append((line, f"the table {table[2]} is out of date; run: python docs/check.py --write"))
    if page.name == _REFERENCE:
        absent = sorted({*_table_names(), "obsolete"} - {table[2] for table in _TABLE.finditer(text)})
        problems += [(1, f"the table {name} is missing") for name in absent]
    return problems


def write_tables() -> None:
    """Writes all generated tables anew."""
    for page in all_pages():
        text = page.read_text(encoding="utf-8")
        new = _TABLE.sub(lambda table: f"{table[1]}\n{make_table(table[2])}\n{table[4]}", text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"{os.path.relpath(page, ROOT)}: tables written")


_REFERENCE = "configuration-reference.md"
"""The page that has a table for every section of the configuration."""

_TABLE = re.compile(r"^(<!-- table (\S+) -->)\n(.*?)^(<!-- end of table -->)$", flags=re.S | re.M)


def make_table(name: str) -> str:
    """The table of a section of the configuration, of the keys that are gone (``obsolete``), or of the settings
    (``Args``) of a ready-made module.
    """
    from chatlearn.config.schema import ALIASES, SECTIONS
    from chatlearn.config.upstream import WITHOUT_EFFECT

    if name == "obsolete":
        return _obsolete_table()
    if name in _table_names():
        section = "" if name == "top" else name
        spelled = {new: old for old, new in ALIASES[section].items()}
        return _fields_table(SECTIONS[section], spelled, WITHOUT_EFFECT.get(section, {}))
    import chatlearn.modules.torch

    return _fields_table(getattr(chatlearn.modules.torch, name).Args, {}, {})


def _table_names() -> list[str]:
    """Names of the tables of all sections; ``top`` is the top level."""
    from chatlearn.config.schema import SECTIONS

    return [section or "top" for section in SECTIONS]


def _fields_table(model: Any, spelled: dict[str, str], without_effect: dict[str, str]) -> str:
    from chatlearn.config.wording import expectation

    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, info in model.model_fields.items():
        name = f"`{key}`" + (f", also `{spelled[key]}`" if key in spelled else "")
        text = (info.description or "").replace("|", "\\|")
        if key in without_effect:
            text += f" *No effect in one process: {without_effect[key]}.*"
        cells = name, expectation(info) or "see the meaning", _default(info), text[:1].upper() + text[1:]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _obsolete_table() -> str:
    from chatlearn.config.upstream import OBSOLETE

    homes = {"models.*": "models.NAME.", "runtime": "runtime.", "": ""}
    rows = ["| key | what to do instead |", "|---|---|"]
    for section, keys in OBSOLETE.items():
        rows += [f"| `{homes[section]}{key}` | {text[0].upper()}{text[1:]}. |" for key, text in keys.items()]
    return "\n".join(rows)


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        factory = typing.get_origin(info.default_factory) or info.default_factory
        return {list: "`[]`", dict: "`{}`"}.get(factory, _default_of_section(factory))
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _default_of_section(factory: Any) -> str:
    """A section is there whether it is written or not; its keys have defaults of their own."""
    from chatlearn.config.schema import SECTIONS

    return "its own" if factory in SECTIONS.values() else "see the meaning"
