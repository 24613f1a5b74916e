"""The folder that is written: whole or not at all, and never over another."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chatlearn.checkpoint.identity import Line
from chatlearn.checkpoint.store import CheckpointStore, read_run_state
from chatlearn.checkpoint.verify import verify
from chatlearn.config.load import load_config
from chatlearn.config.schema import Config
from chatlearn.errors import CheckpointError, ConfigError, ModuleError
from chatlearn.export.choice import chosen, described, left_out
from chatlearn.export.rebuild import config_of, rebuilt
from chatlearn.modules.base import BaseModule
from chatlearn.runtime.seeding import preserved_globals

MAX_SHARD_BYTES = 5_000_000_000

Form = Literal["merged", "adapter"]
"""Of a model with adapters: the whole model that computes the same, or the adapters alone, as peft reads them."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the folder.
        module: name of the module.
        kind: its class.
        checkpoint: that its weights come from.
        episode: complete episodes at that time.
        form: of a module with adapters; ``None`` for others.
        files: names and bytes of all files.
        defaults: parameters of the constructor that were left at their defaults, since a checkpoint does not hold them.
    """

    path: Path
    module: str
    kind: str
    checkpoint: Path
    episode: int
    form: Form | None
    files: Mapping[str, int]
    defaults: Sequence[str]

    @property
    def loads_in_transformers(self) -> bool:
        """Whether it is a folder of Hugging Face format, or of an adapter."""
        return "config.json" in self.files or "adapter_config.json" in self.files


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    module: str | None = None,
    *,
    form: Form | None = None,
    max_shard_bytes: int | None = None,
    settings: Sequence[str] = (),
    program: Mapping[str, BaseModule] | None = None,
) -> Exported:
    """Writes the model of a checkpoint's module for use outside.

    The checkpoint is verified first. The module is constructed and set up as in its run, gets the checkpoint's state,
    and its own ``export`` writes the folder.

    Args:
        checkpoint: its folder.
        out: the folder to write; it is not there, or empty.
        module: name of the module; ``None`` chooses as :func:`~chatlearn.export.choice.chosen` does.
        form: of a module with adapters; ``None``: what its settings say.
        max_shard_bytes: the most bytes of one file of weights, for an ``export`` that takes ``max_shard_size``;
            ``None``: :data:`MAX_SHARD_BYTES`.
        settings: what goes over the configuration of the run.
        program: modules of the program that wrote the checkpoint, by name; ``None`` imports the module's class.

    Raises:
        CheckpointError: it is damaged, or holds no such module.
        ConfigError: ``out`` is taken or can't be written, or the settings are no longer right.
        ModuleError: the module can't be made from its class.
    """
    _check_free(out)
    _check_whole(checkpoint)
    state, content = read_run_state(checkpoint)
    lines = {name: Line(tuple(each["class"])) for name, each in content["modules"].items() if each["saved"]}
    config = config_of(content, checkpoint, settings)
    name = chosen(lines, config, module, checkpoint)
    description = described(name, lines[name], program)
    config, form = _with_form(config, name, form)
    with preserved_globals():
        worker = rebuilt(description, config, checkpoint, state.episode)
        module_object: Any = worker.module
        options = _options(module_object, name, max_shard_bytes)
        files = _written(out, name, lambda path: module_object.export(str(path), **options))
    defaults = left_out(description) if program is None else []
    return Exported(out, name, lines[name].name, checkpoint, state.episode, form, files, defaults)


def _check_free(out: Path) -> None:
    """Refuses to write over anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already and holds something; nothing is written over it. Give another -o.")


def _check_whole(checkpoint: Path) -> None:
    if problems := verify(checkpoint):
        working = CheckpointStore(checkpoint.parent).working(besides=checkpoint)
        other = f"Export the newest one without damage: {working}." if working else "No other checkpoint is whole."
        lines = "\n  ".join(problems)
        raise CheckpointError(f"{checkpoint} is damaged, so nothing is written:\n  {lines}\n{other}")


def _with_form(config: Config, name: str, form: Form | None) -> tuple[Config, Form | None]:
    """The configuration with the form that is asked for, and the form of what is written."""
    lora: Any = config.model(name).args.get("lora")
    if not lora:
        if form == "adapter":
            raise ConfigError(
                f"{name} has no adapter: models.{name}.args.lora is not set. Leave out --adapter to write its model."
            )
        return config, None
    if form is None:
        return config, lora.get("export", "merged")
    return load_config(config, [f"models.{name}.args.lora.export={form}"]), form


def _options(module: Any, name: str, max_shard_bytes: int | None) -> dict[str, Any]:
    """What the module's ``export`` takes of the user's wishes."""
    if "max_shard_size" in inspect.signature(module.export).parameters:
        return {"max_shard_size": max_shard_bytes or MAX_SHARD_BYTES}
    if max_shard_bytes is not None:
        raise ConfigError(
            f"{name}: export of {type(module).__name__} takes no max_shard_size, so the sizes of its files can't be "
            f"chosen. Leave out --max-shard-size."
        )
    return {}


def _written(out: Path, name: str, write: Callable[[Path], None]) -> dict[str, int]:
    """Fills a folder aside and renames it; returns names and bytes of its files."""
    aside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            write(aside)
            files = {path.relative_to(aside).as_posix(): path.stat().st_size for path in _files(aside)}
            if not files:
                raise ModuleError(f"{name}: export wrote nothing to the folder that it was given.")
            if out.exists():
                out.rmdir()
            aside.rename(out)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{out} can't be written: {error.strerror or error}. Give another -o.") from None
    return files


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
