"""The configuration's JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

import copy
from typing import Any

from chatlearn.config.schema import ALIASES, INCLUDES, SECTIONS, Config

Schema = dict[str, Any]

_ANNOTATIONS = ("description", "default")
_REFERENCE: Schema = {
    "type": "string",
    "pattern": r"\$\{",
    "description": "Text with a reference to the environment: ${NAME} or ${NAME:default}.",
}
_INCLUDED: Schema = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    "description": "YAML files that this one builds upon, relative to it; later ones win, this file over all.",
}


def json_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a configuration file, with both spellings of keys and all descriptions."""
    schema = Config.model_json_schema()
    sections = {cls.__name__: cls for cls in SECTIONS.values()}
    definitions: Schema = schema.pop("$defs")
    for name, definition in {**definitions, Config.__name__: schema}.items():
        definition.pop("title", None)
        definition["properties"] = {
            key: _property(definition["properties"][key]) for key in sections[name].model_fields
        } | {
            alias: {**_property(definition["properties"][key]), "description": f"Another spelling of `{key}`."}
            for alias, key in ALIASES[sections[name].section].items()
        }
    schema["properties"] = {INCLUDES: _INCLUDED, **schema["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "chatlearn configuration",
        **schema,
        "$defs": {**definitions, "Reference": _REFERENCE},
    }


def _property(given: Schema) -> Schema:
    """A key's schema that also takes references to the environment, and nothing at all for a section."""
    given = copy.deepcopy(given)
    given.pop("title", None)
    notes = {key: given.pop(key) for key in _ANNOTATIONS if key in given}
    return {**_value(given), **notes}


def _value(given: Schema) -> Schema:
    if "$ref" in given:
        return {"anyOf": [given, {"type": "null"}]}
    if isinstance(given.get("additionalProperties"), dict):
        return {"anyOf": [{**given, "additionalProperties": _value(given["additionalProperties"])}, {"type": "null"}]}
    choices = [_items(each) for each in given.get("anyOf", [given])]
    if not any(each.get("type") == "string" and "enum" not in each and "const" not in each for each in choices):
        choices.append({"$ref": "#/$defs/Reference"})
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _items(given: Schema) -> Schema:
    return {**given, "items": _value(given["items"])} if isinstance(given.get("items"), dict) else given
