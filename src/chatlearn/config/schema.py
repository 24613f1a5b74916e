"""What a run can be told: the whole configuration and its sections.

The models here are frozen and refuse unknown keys. They hold the meaning of one value at a time; what spans
sections (a name in ``export`` that is no model) and how a problem is worded stands in
:mod:`chatlearn.config.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from chatlearn.config.model import BatchGenerationConfig, LoraConfig, ModelConfig
from chatlearn.config.runtime import RuntimeConfig
from chatlearn.config.runtime_env import RuntimeEnvConfig
from chatlearn.config.section import ALIASES, Section

__all__ = [
    "ALIASES",
    "INCLUDES",
    "SECTIONS",
    "BatchGenerationConfig",
    "Config",
    "LoraConfig",
    "ModelConfig",
    "Path",
    "RuntimeConfig",
    "RuntimeEnvConfig",
    "Section",
    "aliases_at",
    "canonical",
    "section_of",
]

Path = tuple[str, ...]
"""Where a value stands: ``("models", "policy", "args", "lr")``."""


INCLUDES = "includes"
"""Key at the top of a file, beside the sections: the files that it builds upon."""


class Config(Section):
    """A whole configuration, made by ``load_config`` or from keywords: ``Config(runtime={...})``.

    A keyword ``includes`` names files to build upon, as in a file.

    Raises:
        ConfigError: From the constructor, listing every problem at once.
    """

    section: ClassVar[str] = ""

    runtime_env: RuntimeEnvConfig = Field(
        default_factory=RuntimeEnvConfig, description="The cluster that modules live on."
    )
    models: dict[str, ModelConfig] = Field(
        default_factory=dict,
        description="Settings of each module by its name. While it is empty, every module gets the defaults.",
    )
    runtime: RuntimeConfig = Field(
        default_factory=RuntimeConfig,
        description="The episode loop and what the run leaves behind.",
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _written: dict[str, tuple[str, bool]] = PrivateAttr(default_factory=dict)

    def __init__(self, **data: Any) -> None:
        # These modules work in terms of this one, so they can't be imported at the top.
        from chatlearn.config.check import validate
        from chatlearn.config.files import add_includes, add_model_files
        from chatlearn.config.tree import tree_of

        tree = tree_of(data, "dict")
        add_includes(tree)
        add_model_files(tree)
        validate(tree, into=self)

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value comes from, by dotted key: "default", "ppo.yaml:12", "command line", "dict", …

        It holds every section, every key of the schema and every setting under ``models.<name>.args``.
        """
        return MappingProxyType(self._sources)

    @property
    def written(self) -> Mapping[str, tuple[str, bool]]:
        """By dotted key under ``models.<name>.args``, for values that are not text by themselves: the text that was
        given (``1e3`` for 1000.0), and whether it came from outside of a file.
        """
        return MappingProxyType(self._written)

    def model(self, name: str) -> ModelConfig:
        """Settings of the module ``name``; the defaults while ``models`` is empty.

        Raises:
            ConfigError: If ``models`` has entries but none of this name.
        """
        if not self.models:
            return ModelConfig()
        if name not in self.models:
            from chatlearn.config.check import check_models, raise_problems

            raise_problems(check_models(self, [name])[0])
        return self.models[name]

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, sources as comments. Loading it gives an equal Config."""
        from chatlearn.config.yaml_text import render

        return render(self)

    def __eq__(self, other: object) -> bool:
        # pydantic would compare the sources too, but where a setting was written makes no difference.
        if not isinstance(other, Config):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None


SECTIONS: dict[str, type[Section]] = {
    cls.section: cls
    for cls in (Config, RuntimeEnvConfig, ModelConfig, LoraConfig, BatchGenerationConfig, RuntimeConfig)
}


def canonical(path: Path) -> Path:
    """The path with each alias replaced by the name of its field."""
    result: list[str] = []
    for part in path:
        result.append(aliases_at(tuple(result)).get(part, part))
    return tuple(result)


def aliases_at(path: Path) -> dict[str, str]:
    """Aliases of the keys that stand directly under a path."""
    section = section_of(path)
    return {} if section is None else ALIASES[section]


def section_of(path: Path) -> str | None:
    """The section whose keys stand directly under a path of field names, or None where there is none."""
    if path[:1] == ("models",) and len(path) > 1:
        path = ("models", "*", *path[2:])
    name = ".".join(path)
    return name if name in SECTIONS and name.count(".") == max(len(path) - 1, 0) else None
