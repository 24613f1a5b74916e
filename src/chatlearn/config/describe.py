"""The resolved configuration as a table: every key, its value, and where the value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chatlearn.config.schema import Config, ModelConfig
from chatlearn.guards import is_mapping

_WIDEST_VALUE = 40
"""Values that are wider push their source aside."""

Row = tuple[str, str, str]
"""Key, value and source."""


def describe(config: Config) -> str:
    """The value of every key and its source, section by section.

    The keys of a model that keep their defaults stand once, under ``models.<name>``.
    """
    from chatlearn.config.yaml_text import dump_value

    def rows(values: Mapping[Any, Any], prefix: str, only_given: bool = False) -> Iterator[Row]:
        for key, value in _leaves(values):
            source = config.sources.get(f"{prefix}.{key}", "default")
            if not only_given or source != "default":
                yield key, dump_value(value), source

    blocks = {"runtime_env": list(rows(config.runtime_env.model_dump(), "runtime_env"))}
    for name, model in config.models.items():
        blocks[f"models.{name}"] = list(rows(model.model_dump(), f"models.{name}", only_given=True))
    given = [{key for key, _, _ in blocks[f"models.{name}"]} for name in config.models]
    everywhere = set[str]().intersection(*given) if not given else given[0].intersection(*given[1:])
    defaults = [row for row in rows(ModelConfig().model_dump(), "models.<name>") if row[0] not in everywhere]
    blocks["models.<name>, where nothing else is said"] = defaults
    blocks["runtime"] = list(rows(config.runtime.model_dump(), "runtime"))
    return "\n\n".join(_table(title, block) for title, block in blocks.items())


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; an empty mapping is a value."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if is_mapping(value) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _table(title: str, rows: list[Row]) -> str:
    if not rows:
        return f"{title}\n  (all keys keep their defaults)"
    keys = max(len(key) for key, _, _ in rows)
    values = min(max(len(value) for _, value, _ in rows), _WIDEST_VALUE)
    lines = [f"  {key:<{keys}}  {value:<{values}}  {source}" for key, value, source in rows]
    return "\n".join([title, *lines])
