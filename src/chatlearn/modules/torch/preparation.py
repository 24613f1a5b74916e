"""What is done to a model before it is trained: layers that are computed again, compilation, and the precision of the
forward pass.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # its types are open

from chatlearn.errors import ConfigError

COMPILE_BACKEND = "inductor"
"""Of ``torch.compile``."""


def checkpoint_layers(model: nn.Module) -> None:
    """Makes the layers of a model keep nothing but their inputs for the backward pass, which computes them again.

    transformers' own switch works in training mode only, where dropout is on; this one works in any mode. Dropout (of
    adapters too) drops the same entries when a layer is computed again.

    Raises:
        ConfigError: the model has no layers that transformers marks as fit for it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"gradient_checkpointing: true, but {type(model).__name__} has no layers that transformers marks as fit "
            f"for it (GradientCheckpointingLayer). Set gradient_checkpointing: false for this model."
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=True)


def compile_backbone(model: Any) -> None:
    """Makes torch compile the model's backbone at its first call, for inputs of any shape.

    Names of parameters stay as they are. The output layer is left out: it works on chunks of rows.
    """
    if (backbone := getattr(model, "backbone", None)) is None:
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        backbone = getattr(causal_lm, "base_model", causal_lm)
    backbone.compile(dynamic=True, backend=COMPILE_BACKEND)


@contextmanager
def compile_seconds_logged(module: Any, is_compiled: bool) -> Generator[None]:
    """Logs ``compile_seconds``, the wall-clock time that torch spends on compiling meanwhile."""
    if not is_compiled:
        yield
        return
    before = _compile_seconds()
    yield
    module.log("compile_seconds", _compile_seconds() - before, "sum")


def _compile_seconds() -> float:
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))


def precision(device: torch.device, autocast: str | None) -> AbstractContextManager[Any]:
    """The context of forward passes: autocast to a dtype, or none."""
    return nullcontext() if autocast is None else torch.autocast(device.type, dtype=getattr(torch, autocast))


def check_autocast(model: nn.Module, autocast: str | None) -> None:
    """Raises ConfigError where the hardware lacks the dtype."""
    device = next(model.parameters()).device
    if autocast is not None and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"autocast: {autocast}, but {torch.cuda.get_device_name(device)} has no {autocast} arithmetic. Set "
            f"autocast: null."
        )
