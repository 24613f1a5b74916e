"""Folders of adapters as peft writes and reads them: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike is bare

from chatlearn.config.values import problem
from chatlearn.errors import ConfigError
from chatlearn.guards import is_dict

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"

_PREFIX = "base_model.model."
"""Of the names in the file: peft's own wrapper around the model."""


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(str(error)) from None
    return value


_Name = Annotated[str, Field(min_length=1)]
_Pattern = Annotated[_Name, AfterValidator(_pattern)]
_Layers = _Pattern | Annotated[list[_Name], Field(min_length=1)]


class _Plain(BaseModel):
    """The keys of ``adapter_config.json`` for W + (alpha / r) · B · A, with what an error says of their values."""

    model_config = ConfigDict(extra="ignore", strict=True)

    r: int = Field(8, ge=1, description="an integer >= 1")
    lora_alpha: float = Field(8, gt=0, allow_inf_nan=False, description="a number > 0")
    target_modules: _Layers = Field(description="names of layers, or a regular expression")
    exclude_modules: _Layers | list[str] | None = Field(None, description="names of layers, or a regular expression")
    modules_to_save: list[_Name] | None = Field(None, description="names of layers")
    rank_pattern: dict[_Pattern, Annotated[int, Field(ge=1)]] | None = Field(None, description="layers with integers")
    alpha_pattern: dict[_Pattern, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        None, description="layers with numbers > 0"
    )
    layers_to_transform: int | list[int] | None = Field(None, description="numbers of layers")
    layers_pattern: _Pattern | list[_Pattern] | None = Field(None, description="names of lists of layers")
    use_rslora: bool | None = Field(None, description="true or false")
    fan_in_fan_out: bool | None = Field(None, description="true or false")
    base_model_name_or_path: str | None = Field(None, description="a model")


_HARMLESS = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "auto_mapping", "revision", "inference_mode", "runtime_config"),
        *("bias", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # see below
        *("lora_dropout", "lorap_lr_ratio", "lorap_emb_lr"),  # of training, which is ours
        *("megatron_core", "qalora_group_size"),  # of other keys that are refused
    )
)
"""Other keys that change nothing. Any that is not known here may be of an adapter that computes something else."""

_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)
"""Values of ``init_lora_weights`` that leave the base model as it is."""


def check_folder(path: str) -> None:
    """What can be seen of an adapter without its base.

    Raises:
        PydanticCustomError: no folder, no adapter in it, or one of another kind.
    """
    folder = Path(path).expanduser()
    shown = folder.absolute()
    if not folder.is_dir():
        raise problem(f"there is no folder {shown}", "give a folder that holds an adapter of peft")
    if not (folder / CONFIG).is_file():
        raise problem(f"{shown} holds no {CONFIG}", "give a folder that an adapter was saved to")
    if not (folder / WEIGHTS).is_file():
        raise problem(
            f"{shown} holds no {WEIGHTS}",
            "save the adapter as safetensors (other files are not read, since they may run code)",
        )
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise problem(f"{shown / CONFIG} is no JSON ({error})", "save the adapter again") from None
    kind = content.get("peft_type") if is_dict(content) else None
    if kind != "LORA":
        raise problem(f"{shown / CONFIG} is of kind {kind!r}", "give an adapter of kind 'LORA'")
    others = [key for key, value in content.items() if value and key not in (*_Plain.model_fields, *_HARMLESS)]
    others += ["bias"] if content.get("bias") not in ("none", None) else []
    others += ["init_lora_weights"] if content.get("init_lora_weights") not in _STARTS else []
    if others:
        values = ", ".join(f"{key}: {content[key]!r}" for key in others)
        raise problem(f"{shown / CONFIG} has {values}", "give an adapter of plain LoRA")
    try:
        _Plain.model_validate(content)
    except ValidationError as error:
        keys = dict.fromkeys(str(each["loc"][0]) for each in error.errors(include_url=False))
        wrong = "; ".join(
            f"{key} is {json.dumps(content.get(key))}, expected {_Plain.model_fields[key].description}" for key in keys
        )
        raise problem(f"{shown / CONFIG}: {wrong}", "save the adapter again") from None


def read_adapter(path: str, model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """What a folder holds that :func:`check_folder` let pass.

    Args:
        path: of the folder.
        model: that the adapter is for; a value model's adapter was saved without the part around the backbone.

    Returns:
        peft's ``LoraConfig``, and the weights by peft's names in this model.

    Raises:
        ConfigError: a file is damaged, or lacks layers that the other one names.
    """
    from peft import LoraConfig

    folder = Path(path).expanduser()
    lora: Any = LoraConfig  # peft leaves the types of its options open
    try:
        config = lora.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG} can't be read ({error}). Save the adapter again.") from error
    tensors = {name.removeprefix(_PREFIX): value for name, value in _tensors(folder / WEIGHTS).items()}
    others = [name for name in tensors if "." in name and not re.search(r"\.(lora_|base_layer\.)", name)]
    whole = sorted({name.rpartition(".")[0] for name in others})
    for name in config.modules_to_save or ():
        if not any(f"{name}." in f"{layer}." for layer in whole):
            raise ConfigError(
                f"{folder / CONFIG} names {name} in modules_to_save, but {WEIGHTS} has no weight of such a layer. Save "
                f"the adapter again, or take {name} out if it was not trained."
            )
    layers = {name.split(".lora_")[0] for name in tensors if ".lora_" in name}
    if not any(name in layers for name, _ in model.named_modules()):
        tensors = {f"{model.base_model_prefix}.{name}": value for name, value in tensors.items()}
        whole = [f"{model.base_model_prefix}.{name}" for name in whole]
    config.inference_mode, config.init_lora_weights, config.bias = False, True, "none"
    config.rank_pattern, config.alpha_pattern = config.rank_pattern or {}, config.alpha_pattern or {}
    config.modules_to_save = whole
    return config, tensors


def warn_of_other_base(config: Any, model: Any, where: str) -> None:
    """Warns where the folder that an adapter was trained on is there, and holds another kind of model."""
    file = Path(config.base_model_name_or_path or "", "config.json").expanduser()
    if not config.base_model_name_or_path or not file.is_file():
        return
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    kind = content.get("model_type") if is_dict(content) else None
    if kind and kind != model.config.model_type:
        warnings.warn(
            f"{where}: the adapter was trained on a model of type {kind} ({file.parent}), and this one is of type "
            f"{model.config.model_type}; its shapes fit, but it may mean nothing here.",
            stacklevel=2,
        )


def fill_adapter(model: torch.nn.Module, given: Mapping[str, torch.Tensor], where: str, model_path: str) -> None:
    """Fills a model's adapters with weights by peft's names.

    Raises:
        ConfigError: they are not those that the model's adapters need, or the base's own that peft writes beside
            adapters of embeddings are others here.
    """
    bases = {name: value for name, value in model.state_dict().items() if ".base_layer." in name}
    ours = {_file_name(name): value for name, value in model.named_parameters() if value.requires_grad}
    problems = [f"the model has no place for {name}" for name in given if name not in ours and name not in bases]
    problems += [
        f"{name.replace('.base_layer', '')} is another one in the file than in the model"
        for name, value in bases.items()
        if name in given and not _are_equal(given[name], value)
    ]
    problems += [f"the file has no {name}" for name in ours if name not in given]
    problems += [
        f"{name} is {list(given[name].shape)} in the file and {list(ours[name].shape)} on the model"
        for name in ours
        if name in given and given[name].shape != ours[name].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:4]) + (f"\n  … and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ConfigError(
            f"{where}: the adapter does not fit the model of {model_path!r}:\n  {shown}\nGive the model that the "
            f"adapter was trained on (base_model_name_or_path in its {CONFIG})."
        )
    with torch.no_grad():
        for name, value in ours.items():
            value.copy_(given[name])


def load_head(path: str, head: torch.nn.Module) -> None:
    """Fills a value model's head, where the folder has one.

    Raises:
        ConfigError: the file is damaged or of another size.
    """
    file = Path(path).expanduser() / HEAD
    if not file.is_file():
        return
    tensors = _tensors(file)
    shapes, ours = ({k: list(v.shape) for k, v in side.items()} for side in (tensors, head.state_dict()))
    if shapes != ours:
        raise ConfigError(f"{file} holds {shapes}, but the head of this model has {ours}. Give the same base model.")
    head.load_state_dict(tensors)


def save_adapter(model: torch.nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Writes the trained weights of a model so that peft loads them onto its base.

    Args:
        model: whose adapters, and layers that are trained whole, are written.
        config: content of peft's ``LoraConfig``.
        folder: exists.
    """
    trained = {name: value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad}
    save_file({_PREFIX + _file_name(n): v.contiguous() for n, v in trained.items()}, folder / WEIGHTS, {"format": "pt"})
    # peft keeps some lists as sets, which JSON lacks
    content = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True, default=sorted)
    (folder / CONFIG).write_text(content + "\n", encoding="utf-8")


def save_head(head: torch.nn.Module, folder: Path) -> None:
    """Writes a value model's head, which peft knows nothing of."""
    save_file({name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, folder / HEAD)


def _file_name(name: str) -> str:
    """peft's name for an entry of the state: without that of the adapter."""
    name = re.sub(r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)\.default\b", r".\1", name)
    return name.replace(".modules_to_save.default", "")


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one is the other, perhaps rounded to its own dtype."""
    a, b = a.cpu(), b.cpu()
    return torch.equal(a, b.to(a.dtype)) or torch.equal(a.to(b.dtype), b)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be read ({error}). Save the adapter again.") from error
