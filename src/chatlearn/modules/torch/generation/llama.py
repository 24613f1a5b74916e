"""One token at a time through models of Llama's kind: their own parameters, with fewer operations between them.

Shape legend: ``N`` sequences, ``D`` hidden size, ``H`` heads, ``K`` key and value heads, ``S`` head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CLASSES = {
    "LlamaForCausalLM": "transformers.models.llama.modeling_llama",
    "Qwen2ForCausalLM": "transformers.models.qwen2.modeling_qwen2",
    "Qwen3ForCausalLM": "transformers.models.qwen3.modeling_qwen3",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class LlamaStep:
    """The next tokens' logits of a model that :func:`is_plain_llama` knows.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self._body, self._head = model.model, model.lm_head
        first = model.model.layers[0].self_attn
        self._head_size, self._scaling = first.head_dim, first.scaling

    def __call__(self, tokens_N: Tensor, mask: Tensor | None, positions_N: Tensor, cache: Any) -> Tensor:
        """Logits ``[N, V]`` after one token more.

        Args:
            tokens_N: int64.
            mask: ``[N, 1, 1, columns]`` bool, or ``None``.
            positions_N: int64.
            cache: that gets the keys and values.
        """
        body = self._body
        x = body.embed_tokens(tokens_N)
        cos, sin = body.rotary_emb(x, positions_N[:, None])
        # rotating by half swaps the halves and negates the first; the sign goes with the sine
        sin = torch.cat([-sin[..., : self._head_size // 2], sin[..., self._head_size // 2 :]], -1)
        for index, layer in enumerate(body.layers):
            normed = _normed(layer.input_layernorm, x)
            x = x + self._attended(layer.self_attn, normed, cos, sin, mask, cache, index)
            mlp, normed = layer.mlp, _normed(layer.post_attention_layernorm, x)
            gated = mlp.act_fn(_linear(mlp.gate_proj, normed)).mul_(_linear(mlp.up_proj, normed))
            x = x + _linear(mlp.down_proj, gated)
        return _linear(self._head, _normed(body.norm, x))

    def _attended(
        self, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Any, index: int
    ) -> Tensor:
        query, key, value = (
            _linear(part, x).view(len(x), -1, self._head_size) for part in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        if hasattr(layer, "q_norm"):
            query, key = _normed(layer.q_norm, query), _normed(layer.k_norm, key)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        keys, values = cache.update(key.unsqueeze(2), value.unsqueeze(2), index)
        # the queries that share a key stand where a sequence's tokens would
        query = query.view(len(x), keys.shape[1], -1, self._head_size)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self._scaling)
        return _linear(layer.o_proj, attended.reshape(len(x), -1))


def is_plain_llama(model: Any) -> bool:
    """Whether a model is just what transformers has for Llama, Qwen2 or Qwen3, in evaluation mode: no adapters, no
    hooks, no other layers (quantized, compiled), and attention by torch.
    """
    kind: type[Any] = type(model)  # pyright: ignore[reportUnknownVariableType]
    if _CLASSES.get(kind.__name__) != kind.__module__ or model.config._attn_implementation != "sdpa":
        return False
    linear = [
        getattr(part, name)
        for layer in model.model.layers
        for part, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down")))
        for name in (f"{letter}_proj" for letter in names)
    ]
    is_usual = all(type(part) is nn.Linear for part in (*linear, model.lm_head))
    return is_usual and not any(part.training or _is_hooked(part) for part in model.modules())


def _is_hooked(part: nn.Module) -> bool:
    return "forward" in vars(part) or any(getattr(part, name) for name in _HOOKS)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _normed(layer: Any, x: Tensor) -> Tensor:
    # in half precision the layer rounds before it multiplies by the weight
    if x.dtype != torch.float32:
        return layer(x)
    return F.rms_norm(x, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings of ``[N, heads, S]``; ``cos`` and ``sin`` ``[N, 1, S]``."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
