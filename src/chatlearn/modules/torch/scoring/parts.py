"""What a model is made of, found out by trying it on a tiny input: whether hidden states and output layer make its
logits, and how sequences may share a line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from chatlearn.errors import ConfigError
from chatlearn.modules.torch.scoring.layout import Layout

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false
# torch has no public names for a module's hooks and for whether it is compiled.

_LINEAR_HEADS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_WAYS: WeakKeyDictionary[nn.Module, WayOfPacking] = WeakKeyDictionary()

_TOLERANCE = 1e-3
"""Of the largest value: what the order of sums may change, in any dtype that models have."""

_LOUD = 100.0
"""Logits of this size show what caps or scales them."""


def head_of(model: Any) -> tuple[Any, nn.Linear] | None:
    """Backbone and output layer of a causal language model.

    Adapters of peft are seen through. The pair is given only where the output layer, applied to the backbone's last
    hidden state, makes the model's logits: that is tried on two tokens when a model is seen for the first time. Models
    that scale or cap their logits, and those whose output layer has an adapter of its own that is switched on, have
    none.

    Returns:
        The pair, or ``None``: take the model's own logits.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = getattr(causal_lm, "base_model", causal_lm)
    head: Any = causal_lm.get_output_embeddings() if hasattr(causal_lm, "get_output_embeddings") else None
    while getattr(head, "disable_adapters", False) is True:  # peft's wrappers, which then call what they are around
        head = head.base_layer if hasattr(head, "base_layer") else head.original_module
    if type(head) is not nn.Linear or backbone is causal_lm or head._forward_hooks or head._forward_pre_hooks:
        return None
    known = _LINEAR_HEADS.get(model)
    if known is None:
        known = _LINEAR_HEADS[model] = _makes_the_logits(model, causal_lm, backbone, head)
    return (backbone, head) if known else None


@torch.no_grad()
def _makes_the_logits(model: Any, causal_lm: Any, backbone: Any, head: nn.Linear) -> bool:
    """Whether the model's logits are the output layer's, for hidden states that give large ones."""
    states: list[Tensor] = []

    def exchange(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if (last := getattr(output, "last_hidden_state", None)) is None:
            return output
        pattern = torch.arange(last.numel(), dtype=torch.float32, device=last.device).sin_().view(last.shape)
        loudest = head(pattern.to(last.dtype)).abs().max().float().clamp_(min=1e-12)
        states.append((pattern * (_LOUD / loudest)).to(last.dtype))
        output.last_hidden_state = states[-1]
        return output

    hook = backbone.register_forward_hook(exchange)
    try:
        with _uncompiled(backbone):
            logits = model(
                input_ids=torch.tensor([_two_tokens(causal_lm.config)], device=head.weight.device), use_cache=False
            ).logits
    finally:
        hook.remove()
    return len(states) == 1 and _agree(logits, head(states[0]))


@dataclass(frozen=True)
class WayOfPacking:
    """How sequences may share lines in a model.

    Attributes:
        hidden_size: of the model.
        single_line: all sequences stand in one line, as flash attention needs it.
        sharing: sequences that begin alike may share their beginning, under a mask of four dimensions.
    """

    hidden_size: int
    single_line: bool
    sharing: bool


def way_of_packing(
    model: nn.Module, backbone: Any, states: Callable[[Layout], Tensor], device: torch.device
) -> WayOfPacking:
    """How sequences may share lines in a model; tried on a few tokens when it is seen for the first time.

    Args:
        model: that is asked about.
        backbone: the part of it that has attention.
        states: what is computed of each token, ``[lines, length, …]``.
        device: of the model.

    Raises:
        ConfigError: one sequence changes what is computed of another.
    """
    known = _WAYS.get(model)
    if known is None:
        known = _WAYS[model] = _way_of_packing(model, backbone, states, device)
    return known


@torch.no_grad()
def _way_of_packing(
    model: nn.Module, backbone: Any, states: Callable[[Layout], Tensor], device: torch.device
) -> WayOfPacking:
    config = getattr(backbone, "config", None)
    implementation = str(getattr(config, "_attn_implementation", "unknown"))

    no_sources = torch.zeros(0, dtype=torch.int64)
    a, b = _two_tokens(config)

    def tried(tokens: list[int], places: list[int] | None = None, mask: Tensor | None = None) -> Tensor:
        position_ids = None if places is None else torch.tensor([places], device=device)
        mask = None if mask is None else mask.to(device)
        return states(Layout(torch.tensor([tokens], device=device), position_ids, mask, no_sources))[0, -2:]

    refusal = ConfigError(
        f"packing: true, but in {type(model).__name__} (attention: {implementation}) sequences that share a line see "
        f"each other: position ids that start anew don't part them. Set packing: false for this model."
    )
    if not _takes_position_ids(backbone):
        raise refusal
    with _uncompiled(model):
        alone = tried([a, b, a, b])
        twice = (tried([*before, a, b, a, b], [0, 1, 2, 0, 1, 2, 3]) for before in ([b, b, a], [a, a, b]))
        if not all(_agree(together, alone) for together in twice):
            raise refusal
        sharing = False
        if implementation in ("sdpa", "eager") and _sees_everything(config):
            # two sequences that begin alike: a b | b b and a b | a b
            mask = torch.ones(6, 6, dtype=torch.bool).tril()
            mask[4:, 2:4] = False
            sharing = _agree(tried([a, b, b, b, a, b], [0, 1, 2, 3, 2, 3], mask[None, None]), alone)
    hidden_size = int(getattr(config, "hidden_size", 0) or 1024)
    return WayOfPacking(hidden_size, single_line="flash" in implementation, sharing=sharing)


def _takes_position_ids(backbone: Any) -> bool:
    parameters = inspect.signature(backbone.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _sees_everything(config: Any) -> bool:
    """Whether attention reaches back to the first token in all layers, as far as the configuration says."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None and getattr(config, "attention_chunk_size", None) is None


def attention_mask(model: Any, layout: Layout) -> Tensor | None:
    """The layout's mask as the model's attention takes it: bool, or for eager attention what is added to its scores."""
    if layout.mask is None or getattr(model.config, "_attn_implementation", None) != "eager":
        return layout.mask
    dtype = next(model.parameters()).dtype
    return torch.zeros(layout.mask.shape, dtype=dtype, device=layout.mask.device).masked_fill_(
        ~layout.mask, torch.finfo(dtype).min
    )


def _two_tokens(config: Any) -> list[int]:
    """Two tokens, not that of padding: a model may warn where it sees it without a mask."""
    return [token for token in range(3) if token != getattr(config, "pad_token_id", None)][:2]


def _agree(a: Tensor, b: Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())


@contextmanager
def _uncompiled(module: nn.Module) -> Generator[None]:
    """Without compiling anything for a trial."""
    if all(part._compiled_call_impl is None for part in module.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
