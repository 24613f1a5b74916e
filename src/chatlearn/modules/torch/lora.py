"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): a layer's weight W becomes W + (alpha / r) · B · A, and
only A and B are trained.

The adapters are those of peft, put into the model in place: its class, its attributes and the way it is called stay as
they are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]  # its PathLike is bare
from torch import Tensor

from chatlearn.config.values import problem
from chatlearn.errors import ConfigError, ModuleError
from chatlearn.guards import is_instance, is_list
from chatlearn.modules.torch.lora_folder import (
    check_folder,
    fill_adapter,
    read_adapter,
    save_adapter,
    save_head,
    warn_of_other_base,
)
from chatlearn.sync.transport import SyncView, checksum

NAME = "default"
"""peft's name of an adapter; a model has one."""

_OF_THE_FOLDER = ("r", "alpha", "target_modules", "modules_to_save")


class LoraArgs(BaseModel):
    """``models.<name>.args.lora``: low-rank adapters on a model whose own weights stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int | None = Field(None, ge=1, description="rank of the adapters")
    alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="the product B · A is multiplied by alpha / r"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapters' inputs, while gradients are computed")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="layers that get adapters, by their last names; all-linear is all linear layers but the output's",
    )
    modules_to_save: list[str] = Field([], description="layers that are trained whole, by their last names")
    path: str | None = Field(
        None, description="folder of an adapter to go on from; r, alpha and the layers are those of the folder"
    )
    seed: int = Field(0, ge=0, lt=2**64, description="of the matrices A at the start; B is zero")
    export: Literal["merged", "adapter"] = Field(
        "merged", description="what export writes: a whole model, or the adapter alone"
    )

    @field_validator("target_modules")
    @classmethod
    def _has_targets(cls, value: list[str] | str) -> list[str] | str:
        if not value or (is_list(value) and "" in value):
            raise problem("names no layer, or has an empty name", "name layers, such as q_proj, or write all-linear")
        return value

    @field_validator("modules_to_save")
    @classmethod
    def _has_names(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise problem("has an empty name", "name layers, such as lm_head, or write []")
        return value

    @field_validator("path")
    @classmethod
    def _is_an_adapter(cls, value: str | None) -> str | None:
        if value == "":
            raise problem("is empty", "give a folder that holds an adapter of peft, or null")
        if value is not None:
            check_folder(value)
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> LoraArgs:
        if importlib.util.find_spec("peft") is None:
            raise problem("LoRA needs the package peft, which is not installed", "pip install 'chatlearn[lora]'")
        if self.path is None and (missing := [key for key in ("r", "alpha") if getattr(self, key) is None]):
            raise problem(f"lacks {' and '.join(missing)}", "set r (such as 16) and alpha (such as 32), or path")
        given = [key for key in _OF_THE_FOLDER if key in self.model_fields_set]
        if self.path is not None and given:
            raise problem(
                f"{', '.join(given)} stand beside path, but come from the adapter's own adapter_config.json",
                "leave them out, or leave out path",
            )
        if both := sorted(set(self.modules_to_save) & set(self.target_modules)):
            raise problem(
                f"{', '.join(both)} can't both get adapters and be trained whole",
                "name each in one of target_modules and modules_to_save",
            )
        return self


@dataclass
class Adapter:
    """What is known of a model's adapter.

    Attributes:
        args: of the configuration.
        config: peft's ``LoraConfig``.
        where: what an error calls it.
        base: fingerprint of the weights that are not trained, once it was asked for.
    """

    args: LoraArgs
    config: Any
    where: str
    base: str | None = None


def add_adapter(model: Any, args: LoraArgs, model_path: str) -> None:
    """Puts adapters into a Hugging Face model and freezes all else.

    Args:
        model: changed in place.
        args: of the adapter. Equal ones give equal adapters, whatever the module and its seed.
        model_path: where the model came from, for the adapter's own configuration and for errors.

    Raises:
        ConfigError: a name matches no layer, or one that can't have an adapter; weights are tied; the folder's adapter
            does not fit the model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    tensors: dict[str, Tensor] = {}
    if args.path is not None:
        where = f"lora.path {args.path!r}"
        config, tensors = read_adapter(args.path, model)
        warn_of_other_base(config, model, where)
        targets, saved = config.target_modules, list[str](config.modules_to_save)
    else:
        where = f"lora on model_path {model_path!r}"
        config = LoraConfig(r=cast(int, args.r), lora_alpha=cast(Any, args.alpha))  # the validator wants both
        targets, saved = args.target_modules, args.modules_to_save
    _check_names(model, targets, saved, where)
    # whole names, since peft takes `norm` for input_layernorm too
    config.modules_to_save = [n for n, _ in model.named_modules() if any(_matches(n, name) for name in saved)] or None
    config.target_modules, config.lora_dropout = targets, args.dropout
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", model_path
    unfit = [f"{n} is a {type(m).__name__}" for n, m in _targeted(model, targets) if not _can_have_adapter(m)]
    try:
        with _seeded(args.seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is checked here, or set right by peft itself
            inject_adapter_in_model(config, model, NAME)
    except ValueError as error:
        why = unfit[0] if unfit else str(error).splitlines()[0]
        raise ConfigError(
            f"{where}: peft can't adapt these layers ({why}). Name linear or embedding layers."
        ) from error
    for _, layer in adapted_layers(model):
        for side in (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B):
            side.float()  # so that small updates are not rounded away
        if args.dropout:
            layer.lora_dropout[NAME] = GradientDropout(args.dropout)
    model.lora_adapter = Adapter(args, config, where)
    if args.path is not None:
        fill_adapter(model, tensors, where, model_path)


class GradientDropout(torch.nn.Dropout):
    """Dropout where gradients are computed, and nowhere else: rollouts and scores are those of the whole network,
    whether the model is in training mode or not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drops entries with probability ``p`` and scales up the others."""
        return torch.nn.functional.dropout(input, self.p, training=torch.is_grad_enabled())


def adapter_of(model: object) -> Adapter | None:
    """The adapter of a model that :func:`add_adapter` gave one."""
    return getattr(model, "lora_adapter", None)


def adapted_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer wherever there is an adapter."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in _modules(model) if is_instance(module, LoraLayer))


def is_trained_layer(layer: object) -> bool:
    """Whether a layer has an adapter or is trained whole beside adapters."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    return is_instance(layer, (LoraLayer, ModulesToSaveWrapper))


def scales_of(model: torch.nn.Module) -> dict[str, float]:
    """alpha / r by adapted layer."""
    return {name: float(layer.scaling[NAME]) for name, layer in adapted_layers(model)}


@contextmanager
def without_adapter(model: torch.nn.Module) -> Generator[None]:
    """The model computes what its base does, to the bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    switches = [module for _, module in _modules(model) if is_instance(module, kinds)]
    for layer in switches:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in switches:
            layer.enable_adapters(True)


def trained_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The entries of ``model.state_dict()`` that are trained: adapters and layers that are trained whole."""
    return {name: value.detach() for name, value in _state(model).items() if value.requires_grad}


def load_trained_state(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Takes back what :func:`trained_state` gave.

    Raises:
        ModuleError: it is of other adapters.
    """
    ours = trained_state(model)
    if wrong := sorted(ours.keys() ^ state.keys()):
        raise ModuleError(
            f"the adapters of the checkpoint and those of setup() differ in {len(wrong)} weights, such as {wrong[0]}"
        )
    model.load_state_dict(dict(state), strict=False)


def base_fingerprint(model: torch.nn.Module) -> str:
    """Tells base models apart: names, shapes, dtypes and checksums of all weights that are not trained."""
    adapter = adapter_of(model)
    assert adapter is not None
    if adapter.base is None:
        digest = hashlib.blake2b(digest_size=16)
        for name, value in _state(model).items():
            if not value.requires_grad:
                digest.update(f"{name} {tuple(value.shape)} {value.dtype} {checksum([value]):08x}\n".encode())
        adapter.base = digest.hexdigest()
    return adapter.base


class MergedWeights(Mapping[str, Tensor]):
    """The state of the model that has no adapters and computes the same: W + (alpha / r) · B · A in place of W.

    Names are those of the base model. A weight is merged when it is read, in float32, and cast to the base's dtype;
    the model's own weights stay as they are.

    Attributes:
        unmerged: name -> tensor of the same shape and dtype.
        fixed: names of the weights that are the base's own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        adapted, saved = dict(adapted_layers(model)), _wrapped(model)
        self.fixed = frozenset[str]()
        self._layers = {f"{name}.weight": layer for name, layer in adapted.items()}
        self.unmerged: dict[str, Tensor] = {}
        for name, value in _state(model).items():
            if (plain := _plain_name(name, adapted, saved)) is None:
                continue
            self.unmerged[plain] = value.detach()
            if not value.requires_grad and plain not in self._layers:
                self.fixed |= {plain}

    def __getitem__(self, name: str) -> Tensor:
        weight = self.unmerged[name]
        if (layer := self._layers.get(name)) is None:
            return weight
        with torch.no_grad():
            if NAME not in layer.lora_A:  # an embedding
                return (weight.float() + layer.get_delta_weight(NAME).float()).to(weight.dtype)
            a, b, scale = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]
            left, right = (a.t(), b.t()) if layer.fan_in_fan_out else (b, a)  # GPT-2's layers keep W transposed
            return torch.addmm(weight.float(), left.float(), right.float(), alpha=scale).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.unmerged)

    def __len__(self) -> int:
        return len(self.unmerged)


def export_merged(model: Any, folder: Path, max_shard_size: int | str | None = None) -> None:
    """Writes the model that computes the same without adapters."""
    merged = dict(MergedWeights(model))
    if hasattr(model, "save_pretrained"):
        from chatlearn.modules.torch.huggingface import save_model_folder

        save_model_folder(model, folder, max_shard_size, state_dict=merged)
    else:
        save_file({name: value.cpu().contiguous() for name, value in merged.items()}, folder / "model.safetensors")


def export_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Writes the adapter alone, as peft reads it; a value model's head goes into a file of its own beside it."""
    adapter = adapter_of(model)
    assert adapter is not None
    backbone: Any = getattr(model, "backbone", model)
    layers = {"target_modules": [name for name, _ in adapted_layers(backbone)], "modules_to_save": _wrapped(backbone)}
    save_adapter(backbone, {**adapter.config.to_dict(), **layers}, folder)
    if backbone is not model:
        save_head(model.get_submodule("head"), folder)


def sync_view(model: torch.nn.Module, merged: bool) -> SyncView:
    """What parameter sync moves of a model with adapters: these, or the weights that they are merged into."""
    if merged:
        weights = MergedWeights(model)
        return SyncView(weights, weights.fixed, outlines=weights.unmerged)
    state = _state(model)
    fixed = frozenset(name for name, value in state.items() if not value.requires_grad)
    tensors = {name: value.detach() for name, value in state.items()}
    return SyncView(tensors, fixed, scales_of(model), base_fingerprint(model), frozenset(_wrapped(model)))


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Leaves torch's generator of the CPU, where adapters are drawn, as it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _modules(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_modules()


def _wrapped(model: torch.nn.Module) -> list[str]:
    """Names of the layers that are trained whole."""
    from peft.utils.other import ModulesToSaveWrapper

    return [name for name, module in _modules(model) if is_instance(module, ModulesToSaveWrapper)]


def _state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of ``model.state_dict()``; parameters still say whether they are trained."""
    return {k: v for k, v in model.state_dict(keep_vars=True).items() if is_instance(v, Tensor)}


def _plain_name(name: str, adapted: Mapping[str, Any], saved: Sequence[str]) -> str | None:
    """The base model's name of an entry, ``None`` for those that it lacks."""
    for layer in adapted:
        if name.startswith(f"{layer}."):
            rest = name.removeprefix(f"{layer}.")
            return f"{layer}.{rest.removeprefix('base_layer.')}" if rest.startswith("base_layer.") else None
    for module in saved:
        if name.startswith(f"{module}."):
            rest = name.removeprefix(f"{module}.")
            trained = f"modules_to_save.{NAME}."
            return f"{module}.{rest.removeprefix(trained)}" if rest.startswith(trained) else None
    return name


def _check_names(model: Any, targets: Any, saved: Sequence[str], where: str) -> None:
    """Each name matches a layer, and none whose weight is another one's too."""
    names = [name for name, _ in model.named_modules()]
    whole = tuple(f"{layer}." for layer in names if any(_matches(layer, name) for name in saved))
    outside = [layer for layer in names if not layer.startswith(whole)]  # peft adapts nothing in what is trained whole
    targets = [] if isinstance(targets, str) else sorted(targets)
    unknown = [name for name in targets if not any(_matches(layer, name) for layer in outside)]
    unknown += [name for name in saved if not any(_matches(layer, name) for layer in names)]
    if unknown:
        known = dict.fromkeys(n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _can_have_adapter(m))
        there = " outside of modules_to_save" if whole else ""
        raise ConfigError(
            f"{where}: {type(model).__name__} has no layer {', '.join(unknown)}{there}. Name some of "
            f"{', '.join(known)}; target_modules: all-linear takes all linear layers but the output's."
        )
    ends = {name: m for name, m in model.named_modules() if m in _embeddings(model)}
    is_tied = len(ends) > 1 and len({module.weight.data_ptr() for module in ends.values()}) == 1
    if is_tied and (tied := [name for name in (*targets, *saved) if any(_matches(layer, name) for layer in ends)]):
        raise ConfigError(
            f"{where}: {', '.join(tied)} can't be changed alone, since the input's and the output's embedding of this "
            f"model are one weight (tie_word_embeddings). Leave it out, or give a model whose embeddings are not tied."
        )


def _targeted(model: Any, targets: Any) -> list[tuple[str, Any]]:
    """Layers that are meant by target_modules: names, a pattern, or all linear layers, which are none here."""
    if isinstance(targets, str):
        return [(n, m) for n, m in model.named_modules() if targets != "all-linear" and re.fullmatch(targets, n)]
    return [(n, m) for n, m in model.named_modules() if any(_matches(n, name) for name in targets)]


def _embeddings(model: Any) -> list[Any]:
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def _matches(layer: str, name: str) -> bool:
    """Whether a layer is meant by a name, as peft reads it."""
    return layer == name or layer.endswith(f".{name}")


def _can_have_adapter(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) or type(module).__name__ == "Conv1D"
