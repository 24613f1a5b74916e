"""Models and tokenizers of Hugging Face format, loaded for the ready-made modules."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors import SafetensorError

from chatlearn.errors import ConfigError
from chatlearn.modules.torch.lora import LoraArgs, adapter_of, add_adapter, is_trained_layer
from chatlearn.modules.torch.lora_folder import load_head


class ModelArgs(BaseModel):
    """``models.<name>.args`` that every ready-made module with a model has."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_path: str = Field(description="folder in Hugging Face format, or a model's name on the Hub")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the parameters")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    lora: LoraArgs | None = Field(None, description="low-rank adapters on the model; null: all weights are trained")

    @field_validator("model_path")
    @classmethod
    def _folder_exists(cls, value: str) -> str:
        folder = Path(value).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ValueError(f"{folder.absolute()} holds no config.json; give a folder that save_pretrained wrote")
        beside_others = "/" in value and folder.parent.is_dir()
        looks_local = beside_others or value.startswith((".", "/", "~", "\\")) or value.count("/") > 1
        if looks_local and not folder.is_dir():
            raise ValueError(
                f"there is no folder {folder.absolute()}; give an existing model folder, or a name on the Hub"
            )
        return value


def load_tokenizer(args: ModelArgs) -> Any:
    """The tokenizer of a model folder, padding on the left.

    Raises:
        ConfigError: there is none, or it has neither a padding nor an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = loaded(AutoTokenizer, args, what="tokenizer")
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer of {args.model_path} has no end-of-sequence token, so no response could ever end. Set "
            "`eos_token`."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_causal_lm(args: ModelArgs, device: torch.device) -> Any:
    """The causal language model of a folder, on ``device``, without dropout (ratios of probabilities need the same
    network twice), with the adapters that ``args.lora`` asks for.

    Raises:
        ConfigError: it can't be loaded, or its files lack parameters, which transformers would draw at random; the
            adapters don't fit it.
    """
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, args.dtype)
    model, info = loaded(AutoModelForCausalLM, args, what="model", dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model_path {args.model_path!r}: its files lack {len(missing)} parameters of a {type(model).__name__}: "
            f"{', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}. Give a folder that save_pretrained wrote "
            f"from the whole model, with the config.json that belongs to it."
        )
    if args.lora is not None:
        add_adapter(model, args.lora, args.model_path)
    return model.to(device).eval()


def loaded(loader: Any, args: ModelArgs, what: str, **options: Any) -> Any:
    """What one of transformers' ``Auto…`` classes makes of a model's folder.

    Raises:
        ConfigError: it can't be loaded.
    """
    path = str(Path(args.model_path).expanduser())
    try:
        with quiet():
            return loader.from_pretrained(path, trust_remote_code=args.trust_remote_code, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"model_path {args.model_path!r}: the {what} can't be loaded ({str(error).splitlines()[0]}). Give a "
            "folder that save_pretrained wrote, "
            f"with the tokenizer's files in it, or a name on the Hub that this machine can reach."
        ) from error


def save_model_folder(model: Any, folder: Path, max_shard_size: int | str | None, **options: Any) -> None:
    """Writes a model by its own ``save_pretrained``.

    Args:
        model: of transformers, or one that saves itself the same way.
        folder: is made if need be.
        max_shard_size: the most bytes of one file of weights; ``None`` leaves it to the model, and so does a model that
            knows no such option.
        options: of ``save_pretrained``.
    """
    known = "max_shard_size" in inspect.signature(model.save_pretrained).parameters
    sizes = {"max_shard_size": max_shard_size} if known and max_shard_size is not None else {}
    with quiet():
        model.save_pretrained(folder, **sizes, **options)


@contextmanager
def quiet() -> Generator[None]:
    """Without transformers' progress bars, which belong to no display of ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class ValueModel(torch.nn.Module):
    """A language model's backbone with a scalar head, zero at the start: the first values are all 0.

    Adapters of the language model are those of the backbone; the head is trained whole.

    Args:
        causal_lm: the model whose backbone is used; its language head is dropped.

    Raises:
        ConfigError: its adapters are on the language head too.
    """

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.backbone = causal_lm.base_model
        weight = next(self.backbone.parameters())
        self.head = torch.nn.Linear(causal_lm.config.hidden_size, 1, device=weight.device, dtype=weight.dtype)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        if (adapter := adapter_of(causal_lm)) is not None:
            if is_trained_layer(causal_lm.get_output_embeddings()):
                raise ConfigError(
                    f"{adapter.where}: the output layer of {type(causal_lm).__name__} is among the layers, but the "
                    f"value model has a head of its own in its place. Leave it out of target_modules and "
                    f"modules_to_save, or give an adapter without it."
                )
            self.lora_adapter = dataclasses.replace(adapter, base=None)
            if adapter.args.path is not None:
                load_head(adapter.args.path, self.head)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Values ``[B, T]`` float32: entry t is the value of the state after token t."""
        output = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return self.head(output.last_hidden_state).squeeze(-1).float()
