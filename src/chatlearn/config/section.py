"""What all sections of a configuration share: frozen, strict, no unknown keys, two spellings of some keys."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from chatlearn.config.values import problem, split_names
from chatlearn.errors import ConfigError
from chatlearn.guards import is_mapping

ALIASES: dict[str, dict[str, str]] = {
    "": {"rlhf": "runtime"},
    "runtime_env": {},
    "models.*": {"num_device": "num_gpu"},
    "models.*.lora": {},
    "models.*.batch_generation": {},
    "runtime": {
        "num_ppo_episode": "num_episode",
        "max_relay_episode": "max_replay_episode",
        "relay_episode_offset": "replay_episode_offset",
    },
}
"""Second spellings, section by section (``""`` is the top level): alias -> the name of the field.

Both spellings work in files, in overrides, in dicts and on reading (``config.rlhf is config.runtime``).
"""


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, no unknown keys, aliases on the way in and out.

    Raises:
        ConfigError: From setting an attribute.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, data: Any) -> Any:
        if not is_mapping(data):
            return data
        aliases = ALIASES[cls.section]
        spelled: dict[Any, Any] = {}
        for key in data:
            name = aliases.get(key, key)
            if name in spelled:
                raise problem(f"`{spelled[name]}` and `{key}` are two spellings of one key", "keep one of the two")
            spelled[name] = key
        return {name: data[key] for name, key in spelled.items()}

    if not TYPE_CHECKING:  # a type checker should go on to find mistyped names

        def __getattr__(self, name: str) -> Any:
            # Only reached for names that are no fields, so reading a field costs nothing extra.
            field = ALIASES[type(self).section].get(name)
            return super().__getattr__(name) if field is None else getattr(self, field)

        def __setattr__(self, name: str, value: Any) -> None:
            key = f"{type(self).section}.{name}".replace("*", "<name>").lstrip(".")
            raise ConfigError(
                f"{key}: a configuration can't be changed once it is loaded. Give the value to chatlearn.init(), as "
                f"{key}=… on the command line, or in a file or a dict."
            )


def _path_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else value


def _usable_text(value: str) -> str:
    if not value.strip():
        raise problem("must not be empty", "give it a value or leave the key out")
    if "\0" in value:
        raise problem("must not contain a NUL character", "remove it")
    return value


Count = Annotated[int, Field(ge=1)]
"""A whole number from 1 on."""

Text = Annotated[str, AfterValidator(_usable_text)]
"""Text that is not empty."""

PathText = Annotated[str, BeforeValidator(_path_as_text), AfterValidator(_usable_text)]
"""Text that names a file or a folder; a ``pathlib`` path is taken too."""

Names = Annotated[list[str], BeforeValidator(split_names, json_schema_input_type=list[str] | str | None)]
"""A list of names, or text with commas between them."""
