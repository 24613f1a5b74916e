"""Folders of adapters as peft writes and reads them: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike is bare

from chatlearn.config.values import problem
from chatlearn.errors import ConfigError
from chatlearn.guards import is_dict

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"

_PREFIX = "base_model.model."
"""Of the names in the file: peft's own wrapper around the model."""

_UNSUPPORTED = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "target_parameters", "trainable_token_indices"),
    *("layer_replication", "megatron_config", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("velora_config", "monteclora_config", "ensure_weight_tying"),
)
"""Keys of ``adapter_config.json`` for other kinds of adapters than W + (alpha / r) · B · A."""

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
    others = [key for key in _UNSUPPORTED if content.get(key)]
    others += ["bias"] if content.get("bias", "none") != "none" else []
    others += ["init_lora_weights"] if content.get("init_lora_weights") not in _STARTS else []
    if others:
        values = ", ".join(f"{key}: {content[key]!r}" for key in others)
        raise problem(f"{shown / CONFIG} has {values}", "give an adapter of plain LoRA")


def read_adapter(path: str, model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """What a folder holds that :func:`check_folder` let pass.

    Args:
        path: of the folder.
        model: that the adapter is for; a value model's adapter was saved without the part around the backbone.

    Returns:
        peft's ``LoraConfig``, and the weights by peft's names in this model.

    Raises:
        ConfigError: the file is damaged.
    """
    from peft import LoraConfig

    lora: Any = LoraConfig  # peft leaves the types of its options open
    config = lora.from_pretrained(str(Path(path).expanduser()))
    tensors = {name.removeprefix(_PREFIX): value for name, value in _tensors(Path(path).expanduser() / WEIGHTS).items()}
    layers = {name.split(".lora_")[0] for name in tensors if ".lora_" in name}
    if not any(name in layers for name, _ in model.named_modules()):
        tensors = {f"{model.base_model_prefix}.{name}": value for name, value in tensors.items()}
    config.inference_mode, config.init_lora_weights = False, True
    config.modules_to_save = sorted({name.rpartition(".")[0] for name in tensors if ".lora_" not in name})
    return config, tensors


def fill_adapter(model: torch.nn.Module, given: Mapping[str, torch.Tensor], where: str, model_path: str) -> None:
    """Fills a model's adapters with weights by peft's names.

    Raises:
        ConfigError: they are not those that the model's adapters need.
    """
    ours = {_file_name(name): value for name, value in model.named_parameters() if value.requires_grad}
    problems = [f"the model has no place for {name}" for name in given if name not in ours]
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
    content = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(content + "\n", encoding="utf-8")


def save_head(head: torch.nn.Module, folder: Path) -> None:
    """Writes a value model's head, which peft knows nothing of."""
    save_file({name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, folder / HEAD)


def _file_name(name: str) -> str:
    """peft's name for an entry of the state: without that of the adapter."""
    name = re.sub(r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)\.default\b", r".\1", name)
    return name.replace(".modules_to_save.default", "")


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be read ({error}). Save the adapter again.") from error
