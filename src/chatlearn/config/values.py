"""Single values: made plain, shown in messages, refused by a validator."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from pydantic_core import PydanticCustomError

from chatlearn.guards import is_mapping, is_sequence


def listed(value: Any) -> Any:
    """A tuple as a list; anything else as it is."""
    return list(value) if is_sequence(value) else value


def split_names(value: Any) -> Any:
    """``"policy, value"``, ``["policy", "value"]`` or None as a list of names; anything else as it is."""
    if value is None:
        return []
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return listed(value)


def name_groups(value: Any) -> Any:
    """``["policy,value", ["reward"]]`` as lists of names; ``"policy,value"`` is one group; anything else as it is."""
    if value is None:
        return []
    if isinstance(value, str):
        value = [value] if value.strip() else []
    if not is_sequence(value):
        return value
    return [split_names(group) if isinstance(group, str | tuple) else group for group in value]


def plain(value: Any) -> Any:
    """A copy made of plain values only, so that it can be written to YAML and sent to workers."""
    try:
        return _plain(value, "")
    except RecursionError:
        fix = "make it flatter, or take it out of itself"
        raise problem("is nested too deeply, or contains itself", fix) from None


def _plain(value: Any, path: str) -> Any:
    """The plain copy; ``path`` says where in the value of a key it stands, for the message."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return _encodable(str.__str__(value), path)  # the text itself, also of an enum's member or another subclass
    if isinstance(value, PurePath):
        return _encodable(str(value), path)
    if is_mapping(value):
        return {_plain_key(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if is_sequence(value):
        return [_plain(item, f"{path}.{index}") for index, item in enumerate(value)]
    raise problem(
        f"must consist of plain values, got {shown(value)}{_at(path)}",
        "use numbers, text, true/false, null, lists and mappings; pass objects to the module's constructor",
    )


def _plain_key(key: Any, path: str) -> Any:
    if is_mapping(key) or is_sequence(key):
        raise problem(f"has {shown(key)} as a key{_at(path)}", "use text or numbers as keys")
    return _plain(key, path)


def _encodable(text: str, path: str) -> str:
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise problem(f"{shown(text)} holds a lone surrogate{_at(path)}, which no file can hold", "remove it")
    return text


def _at(path: str) -> str:
    return f" at `{path[1:]}`" if path else ""


def shown(value: Any) -> str:
    """A value as it stands in an error: short, and safe for any object."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if is_mapping(value):
        return "a mapping"
    if is_sequence(value):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very large integer"
    if isinstance(value, int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "…" + text[-1]
    return f"an object of type {type(value).__name__}"


def problem(message: str, fix: str = "") -> PydanticCustomError:
    """A problem with one value, for a validator to raise; its place and key are added where it is worded."""
    # pydantic takes no lone surrogates, which a text from Python may hold.
    texts = {"message": message, "fix": fix}
    return PydanticCustomError(
        "chatlearn",
        "{message}",
        {key: text.encode("utf-8", "backslashreplace").decode() for key, text in texts.items()},
    )
