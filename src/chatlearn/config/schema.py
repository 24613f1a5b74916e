"""What a run can be told: the sections, their keys, types and defaults.

The models here are frozen and refuse unknown keys. They hold the meaning of one value at a time; what spans
sections (a name in ``export`` that is no model) and how a problem is worded stands in
:mod:`chatlearn.config.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from chatlearn.config.values import plain, problem, shown, split_names

Path = tuple[str, ...]
"""Where a value stands: ``("models", "policy", "args", "lr")``."""

ALIASES: dict[str, dict[str, str]] = {
    "": {"rlhf": "runtime"},
    "runtime_env": {},
    "models.*": {},
    "runtime": {"num_ppo_episode": "num_episode"},
}
"""Second spellings, section by section (``""`` is the top level): alias -> the name of the field.

Both spellings work in files, in overrides, in dicts and on reading (``config.rlhf is config.runtime``).
"""


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, no unknown keys, aliases on the way in and out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())
    section: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
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


class RuntimeEnvConfig(Section):
    """Section ``runtime_env``: the cluster that modules live on."""

    section: ClassVar[str] = "runtime_env"

    backend: Literal["local"] = Field(
        default="local", description="Cluster that runs the modules: `local` is this process."
    )
    isolate: bool = Field(
        default=False,
        description="Send every argument and result of a step through bytes, as between processes. "
        "Slower; finds modules that rely on shared objects.",
    )


class ModelConfig(Section):
    """Section ``models.<name>``: size and placement of one module, and the user's own settings for it."""

    section: ClassVar[str] = "models.*"

    num_cpu: int = Field(default=0, ge=0, description="CPU cores reserved for each replica.")
    num_replica: int = Field(default=1, ge=1, description="Copies of the module that share its batches.")
    cpu_per_process: int = Field(default=1, ge=1, description="Threads that each process may use for computing.")
    trainable: bool = Field(default=False, description="Whether the module is trained.")
    generation_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Samples in one call of an inference step. "
        "`null` (or -1) takes the value of `runtime.generation_batch_size`.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="The user's own settings, passed to the module as they are. Plain values only: numbers, "
        "text, true/false, null, lists, mappings. Checked by the module class's `Args` model if it has one.",
    )

    @field_validator("generation_batch_size", mode="before")
    @classmethod
    def _minus_one_inherits(cls, value: Any) -> Any:
        return None if type(value) is int and value == -1 else value

    @field_validator("args", mode="before")
    @classmethod
    def _plain_args(cls, value: Any) -> Any:
        return {} if value is None else plain(value)


class RuntimeConfig(Section):
    """Section ``runtime`` (also spelled ``rlhf``): the episode loop and what the run leaves behind."""

    section: ClassVar[str] = "runtime"

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed that all randomness of the run is derived from.")
    num_episode: int = Field(default=5000, ge=1, description="Episodes of the run. Also spelled `num_ppo_episode`.")
    sample_per_episode: int = Field(
        default=1000, ge=1, description="Samples (not prompts) of experience in one episode."
    )
    generation_batch_size: int = Field(default=2, ge=1, description="Samples in one call of an inference step.")
    train_micro_batch_size: int = Field(
        default=2, ge=1, description="Samples in one forward and backward pass of training."
    )
    train_global_batch_size: int = Field(
        default_factory=lambda data: data["train_micro_batch_size"],
        ge=1,
        description="Samples in one call of `train_step`; a multiple of `train_micro_batch_size`. "
        "`null` (the default) takes the value of `train_micro_batch_size`.",
    )
    num_training_epoch: int = Field(default=1, ge=1, description="Times that each sample of an episode is trained on.")
    eval_episode_interval: int = Field(
        default=0, ge=0, description="Evaluate after every so many episodes; 0 is never."
    )
    save_episode_interval: int | None = Field(
        default=None,
        ge=0,
        description="Save a checkpoint after every so many episodes; `null` and 0 are never.",
    )
    resume: str = Field(
        default="never",
        description="`never` starts a new run; `auto` goes on with the newest run of `exp_name`; "
        "a path goes on with that run folder or checkpoint. `false` and `true` mean `never` and `auto`.",
    )
    output_dir: str = Field(default="runs", description="Folder in which each run gets a folder of its own.")
    exp_name: str = Field(default="chatlearn", description="Name of the run's folder under `output_dir`: no path.")
    log_interval: int = Field(
        default=1, ge=1, description="Print a line after every so many episodes; metrics are written after each."
    )
    log_samples: int | Literal["all"] = Field(
        default=16,
        description="Samples of each episode that are written to the run folder: a number >= 0, or `all`.",
    )
    export: list[str] = Field(
        default_factory=list,
        description="Names of the modules to export at the end: a list, or text with commas between names.",
    )

    @field_validator("train_global_batch_size", mode="before")
    @classmethod
    def _null_is_micro_batch(cls, value: Any, info: ValidationInfo) -> Any:
        # 1 stands in while the micro-batch size itself is wrong, which is reported already.
        return info.data.get("train_micro_batch_size", 1) if value is None else value

    @field_validator("train_global_batch_size", mode="after")
    @classmethod
    def _whole_micro_batches(cls, value: int, info: ValidationInfo) -> int:
        micro = info.data.get("train_micro_batch_size", 1)
        if value % micro:
            below = value // micro * micro
            choices = f"{below} or {below + micro}" if below else str(micro)
            raise problem(
                f"must be a multiple of train_micro_batch_size, which is {micro}; got {value}",
                f"set it to {choices}",
            )
        return value

    @field_validator("resume", mode="before")
    @classmethod
    def _resume_as_text(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return "auto" if value else "never"
        return str(value) if isinstance(value, PurePath) else value

    @field_validator("output_dir", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, PurePath) else value

    @field_validator("resume", "output_dir", "exp_name", mode="after")
    @classmethod
    def _usable_text(cls, value: str) -> str:
        if not value.strip():
            raise problem("must not be empty", "give it a value or leave the key out")
        if "\0" in value:
            raise problem("must not contain a NUL character", "remove it")
        if "${" in value:
            raise problem(
                f"only a whole value can come from the environment, got {value!r}",
                "write ${NAME} or ${NAME:default} and nothing around it",
            )
        return value

    @field_validator("exp_name", mode="after")
    @classmethod
    def _plain_folder_name(cls, value: str) -> str:
        if value in (".", "..") or "/" in value or "\\" in value:
            raise problem(
                f"must be a plain folder name without separators, got {value!r}",
                "name the folder above it in runtime.output_dir",
            )
        return value

    @field_validator("log_samples", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        if value == "all" or (type(value) is int and value >= 0):
            return value
        raise problem(f"expected an integer >= 0 or `all`, got {shown(value)}")

    @field_validator("export", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return split_names(value)


class Config(Section):
    """A whole configuration, made by ``load_config`` or from keywords: ``Config(runtime={...})``.

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
        description="The episode loop and what the run leaves behind; also `rlhf`.",
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **data: Any) -> None:
        # These modules work in terms of this one, so they can't be imported at the top.
        from chatlearn.config.check import validate
        from chatlearn.config.tree import tree_of

        validate(tree_of(data, "dict"), into=self)

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each value comes from, by dotted key: "default", "ppo.yaml:12", "command line", "dict", …

        It holds every section, every key of the schema and every setting under ``models.<name>.args``.
        """
        return MappingProxyType(self._sources)

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

    __hash__ = None  # type: ignore[assignment]


SECTIONS: dict[str, type[Section]] = {
    cls.section: cls for cls in (Config, RuntimeEnvConfig, ModelConfig, RuntimeConfig)
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
    if len(path) == 2 and path[0] == "models":
        return "models.*"
    if path == () or (len(path) == 1 and path[0] in ("runtime_env", "runtime")):
        return ".".join(path)
    return None
