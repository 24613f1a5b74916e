"""The tables of configuration keys, which are generated from the code."""

from __future__ import annotations

import json
import os
import re
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
