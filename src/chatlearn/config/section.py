"""What all sections of a configuration share: frozen, strict, no unknown keys, two spellings of some keys."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from chatlearn.config.frozen import frozen, refusal
from chatlearn.config.values import problem, split_names
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


AnySection = TypeVar("AnySection", bound="Section")


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, no unknown keys, aliases on the way in and out.

    Its lists and dicts can't be changed either; ``copy.deepcopy`` of one gives a plain one that can.

    Raises:
        ConfigError: From setting or deleting an attribute.
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

    @model_validator(mode="after")
    def _freeze(self) -> Self:
        return _freeze(self)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return _freeze(super().__deepcopy__(memo))

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        _freeze(self)

    if not TYPE_CHECKING:  # a type checker should go on to find mistyped names

        def __getattr__(self, name: str) -> Any:
            # Only reached for names that are no fields, so reading a field costs nothing extra.
            field = ALIASES[type(self).section].get(name)
            return super().__getattr__(name) if field is None else getattr(self, field)

        def __setattr__(self, name: str, value: Any) -> None:
            raise refusal(_key(self, name))

        def __delattr__(self, name: str) -> None:
            raise refusal(_key(self, name))


def _freeze(section: AnySection) -> AnySection:
    for name in type(section).model_fields:
        object.__setattr__(section, name, frozen(getattr(section, name), _key(section, name)))
    return section


def _key(section: Section, name: str) -> str:
    return f"{type(section).section}.{name}".replace("*", "<name>").lstrip(".")


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
