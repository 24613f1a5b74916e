"""Turns pydantic's validation errors into problems in plain words, with places and the nearest known key."""

from __future__ import annotations

import difflib
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from chatlearn.config.problem import Problem
from chatlearn.config.schema import ALIASES, INCLUDES, SECTIONS, Path, section_of
from chatlearn.config.tree import Mark
from chatlearn.config.upstream import OBSOLETE
from chatlearn.config.values import shown
from chatlearn.guards import is_mapping, is_sequence

_KINDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    tuple: "a list",
    set: "a list",
    dict: "a mapping",
    type(None): "null",
}
_KINDS_BY_ERROR = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "none_required": "null",
}
_LONGEST_TEXT = 60
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_SILENT = {"default_factory_not_called"}  # follows from an error that is reported itself


def problems_from(
    errors: Iterable[ErrorDetails],
    model: type[BaseModel],
    data: Mapping[Any, Any],
    mark_at: Callable[[Path], Mark],
    prefix: Path = (),
) -> list[Problem]:
    """Problems in plain words.

    Args:
        errors: What pydantic found.
        model: The model that was validated.
        data: What it was given.
        mark_at: Gives the mark of a path.
        prefix: Where ``data`` stands in the configuration.
    """
    found: dict[Problem, None] = {}
    placed = [(error, path_in_data(error, data)) for error in errors if error["type"] not in _SILENT]
    around = {path[:length] for _, path in placed for length in range(len(path))}
    for error, path in placed:
        if path in around and error["type"].endswith("_type"):
            continue  # another branch of a union, while something inside the value is wrong
        mark = mark_at((*prefix, *path))
        message, fix = _worded(error, model, path, mark, (*prefix, *path))
        found[Problem(mark.source, mark.key, message, fix)] = None
    return list(found)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like ``name``, or None if none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def unknown_key(key: str, known: Iterable[str], listed: str = "known keys") -> tuple[str, str]:
    """Message and fix for a key that is not among the known ones."""
    known = list(known)
    if guess := nearest(key, known):
        return f"unknown key; did you mean `{guess}`?", f"write `{guess}`, or remove it"
    return "unknown key", f"remove it; {listed}: {', '.join(known) or 'none'}"


def known_keys(section: str) -> list[str]:
    """Keys of a section of the schema, both spellings."""
    return [*SECTIONS[section].model_fields, *ALIASES[section]]


def misplaced_key(path: Path) -> tuple[str, str]:
    """Message and fix for an unknown key of the schema: mistyped, or one of another section."""
    key, here = path[-1], section_of(path[:-1])
    if instead := OBSOLETE.get(here or "", {}).get(key):
        return "this key of older versions is gone", instead
    homes = {section: section.replace("*", "<name>") for section in SECTIONS}
    found = [
        (_likeness(key, known), section == here, known, section)
        for section in homes
        for known in (*known_keys(section), *([] if section else [INCLUDES]))
        if _likeness(key, known) >= (0.6 if section == here else 0.8)
    ]
    _, is_here, guess, section = max(found, default=(0, True, "", ""))
    if not is_here and section:
        return (
            f"unknown key here; `{guess}` belongs under {homes[section]}",
            f"move it under {homes[section]}",
        )
    message, fix = unknown_key(key, [*known_keys(here or ""), *([] if here else [INCLUDES])])
    if here == "models.*":
        fix += f"; a setting of your own belongs under {'.'.join(path[:-1])}.args"
    return message, fix


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field that ``path`` names, through nested models, mappings and lists, or None."""
    field: FieldInfo | None = None
    current: Any = model
    for part in path:
        current = _that_holds(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields
            field = fields.get(part) or next((each for each in fields.values() if each.alias == part), None)
            if field is None:
                return None
            current = field.annotation
        elif typing.get_origin(current) in (dict, list):
            current = typing.get_args(current)[-1]
            field = FieldInfo.from_annotation(current)
        else:
            return None
    return field


def expectation(field: FieldInfo) -> str | None:
    """What a field takes, as "an integer >= 1"; None where there are no plain words for its type."""
    return _described(field.annotation, field.metadata)


def path_in_data(error: ErrorDetails, data: Any) -> Path:
    """The error's location as far as it exists in the data: pydantic also names branches of unions there."""
    path: list[str] = []
    for part in error["loc"]:
        if is_sequence(data):
            data = dict(enumerate(data))
        if is_mapping(data) and part in data:
            data = data[part]
        elif error["type"] == "missing" and is_mapping(data):
            return (*path, str(part))
        elif isinstance(part, str):
            continue
        else:
            break
        path.append(str(part))
    return tuple(path)


def _worded(error: ErrorDetails, model: type[BaseModel], path: Path, mark: Mark, full_path: Path) -> tuple[str, str]:
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "chatlearn":
        return context["message"], context["fix"]
    if kind == "extra_forbidden":
        if section_of(full_path[:-1]) is not None:
            return misplaced_key(full_path)
        return unknown_key(path[-1], _fields_around(model, path))
    field = field_at(model, path)
    if kind == "missing":
        expected = (field and expectation(field)) or "a value"
        about = f" ({field.description})" if field and field.description else ""
        return f"missing; expected {expected}{about}", f"add `{path[-1]}: …` under {'.'.join(full_path[:-1])}"
    if kind in ("value_error", "assertion_error"):
        return f"{error['msg'].split(', ', 1)[-1]}; got {shown(value)}", _default_fix(field)
    expected = _expected(error, field)
    return f"expected {expected}, got {_as_written(value, mark)}", _fix(expected, value, mark, field)


def _expected(error: ErrorDetails, field: FieldInfo | None) -> str:
    kind = error["type"]
    stem = next((kind.removesuffix(end) for end in ("_type", "_parsing", "_from_float") if kind.endswith(end)), None)
    plain = stem in _KINDS_BY_ERROR or kind in ("literal_error", "enum", "none_required")
    if field and (plain or kind.startswith(("greater_than", "less_than"))) and (words := expectation(field)):
        return words
    if stem in _KINDS_BY_ERROR:
        return _KINDS_BY_ERROR[stem]
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value should have ")
    return message[0].lower() + message[1:]


def _as_written(value: Any, mark: Mark) -> str:
    """A value as it stands in an error; a number or true and false as the user spelled it."""
    is_spelled = isinstance(value, bool | int | float) and mark.text is not None and len(mark.text) <= _LONGEST_TEXT
    return mark.text if is_spelled and mark.text else shown(value)


def _fix(expected: str, value: Any, mark: Mark, field: FieldInfo | None) -> str:
    key = mark.key.rpartition(".")[2]
    before = "" if key.isdecimal() else f"{key}: "  # items of a list have no key
    if value is None:
        return _default_fix(field) or "give it a value, or leave the key out"
    if expected.startswith("text") and isinstance(value, bool | int | float):
        if not mark.outside:
            return f"put it in quotes: {before}'{_as_written(value, mark)}'"
        if mark.source == "command line":
            return f"quote it for YAML and for the shell: {mark.key}=\"'{_as_written(value, mark)}'\""
        return f"write !!str before the reference: {before}!!str ${{…}}"
    if expected.startswith("an integer"):
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
            return f"write {int(value)}"
        if isinstance(value, str) and value.strip().lstrip("-+").isdecimal():
            if mark.text is None:
                return f"write {value.strip()} without quotes"
            return f"write {value.strip()}" if mark.outside else f"write {before}!!int {mark.text.strip()}"
    if expected == "true or false":
        return "write true or false, without quotes"
    if expected == "a mapping":
        return f"put `key: value` lines under `{key}`, indented, or leave it empty"
    if expected == "a list":
        return f"write {before}[a, b]"
    return _default_fix(field)


def _default_fix(field: FieldInfo | None) -> str:
    if field is None or field.is_required() or field.default_factory is not None:
        return "correct the value"
    default = "null" if field.default is None else shown(field.default)
    return f"correct the value, or leave the key out to take the default, {default}"


def _fields_around(model: type[BaseModel], path: Path) -> list[str]:
    around = field_at(model, path[:-1])
    inner = _without_null(around.annotation) if around else model
    if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
        return []
    return [field.alias or name for name, field in inner.model_fields.items()]


def _described(annotation: Any, metadata: Iterable[Any]) -> str | None:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        inner = [each.metadata if isinstance(each, FieldInfo) else [each] for each in args[1:]]
        return _described(args[0], [*itertools.chain(*inner), *metadata])
    if origin in (Union, types.UnionType):
        parts = [_described(arg, metadata if arg is not type(None) else ()) for arg in args]
        return None if None in parts else " or ".join(dict.fromkeys(typing.cast("list[str]", parts)))
    if origin is Literal:
        return _choice(args)
    kind = origin or annotation
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Enum):
        return _choice([member.value for member in kind])
    if issubclass(kind, BaseModel | Mapping):
        return "a mapping"
    words = "a path" if issubclass(kind, PurePath) else _KINDS.get(kind)
    bounds = [f"{sign} {_number(each)}" for sign, each in _bounds(metadata)]
    return " and ".join([f"{words} {bounds[0]}", *bounds[1:]]) if words and bounds else words


def _bounds(metadata: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(sign, getattr(each, name)) for each in metadata for name, sign in _BOUNDS.items() if hasattr(each, name)]


def _number(bound: Any) -> str:
    large_power = isinstance(bound, int) and bound > 2**20 and bound & (bound - 1) == 0
    return f"2**{bound.bit_length() - 1}" if large_power else f"{bound}"


def _choice(values: Iterable[Any]) -> str:
    listed = [f"`{value}`" for value in values]
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"


def _that_holds(annotation: Any) -> Any:
    """Of a union the branch that has something in it; any other annotation itself."""
    annotation = _without_null(annotation)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        branches = map(_without_null, typing.get_args(annotation))
        return next((each for each in branches if typing.get_origin(each) in (dict, list)), annotation)
    return annotation


def _without_null(annotation: Any) -> Any:
    """``X`` for ``X | None`` and for ``Annotated[X, …]``."""
    if typing.get_origin(annotation) is Annotated:
        return _without_null(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
