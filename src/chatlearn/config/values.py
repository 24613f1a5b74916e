"""Single values: made plain, shown in messages, refused by a validator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic_core import PydanticCustomError


def split_names(value: Any) -> Any:
    """``"policy, value"``, ``["policy", "value"]`` or None as a list of names; anything else as it is."""
    if value is None:
        return []
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return list(value) if isinstance(value, tuple) else value


def plain(value: Any) -> Any:
    """A copy made of plain values only, so that it can be written to YAML and sent to workers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, also of an enum's member or another subclass
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise problem(
        f"must consist of plain values, got {shown(value)}",
        "use numbers, text, true/false, null, lists and mappings; pass objects to the module's constructor",
    )


def shown(value: Any) -> str:
    """A value as it stands in an error: short, and safe for any object."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very large integer"
    if isinstance(value, int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "…" + text[-1]
    return f"an object of type {type(value).__name__}"


def problem(message: str, fix: str = "") -> PydanticCustomError:
    """A problem with one value, for a validator to raise; its place and key are added where it is worded."""
    return PydanticCustomError("chatlearn", "{message}", {"message": message, "fix": fix})
