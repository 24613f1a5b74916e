"""Log-probabilities and entropies from hidden states, without ever holding the logits of all tokens.

The output layer is applied to a few rows at a time, and again in the backward pass, so that neither logits nor their
gradient exist for more than one chunk of rows. Shape legend: ``M`` tokens, ``H`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

CHUNK_ELEMENTS = {"cpu": 1 << 22}
"""Logits that exist at a time, by type of device: 16 MiB of float32 on a processor, where more makes nothing faster."""

OTHER_CHUNK_ELEMENTS = 1 << 26
"""The same for accelerators, which need many rows to be busy: 256 MiB of float32."""

MIN_ROWS = 64
"""Rows of a chunk, whatever the vocabulary: with fewer, reading the output layer's weight takes longer than the
product."""


def head_logprobs(
    states_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    tokens_M: Tensor,
    temperature: float,
    *,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of tokens under the softmax of ``(states @ weight.T + bias) / temperature``.

    The product has the dtype of the weight (of autocast, where that is on), as the model's own layer would; everything
    after it is float32 (float64 for float64 weights), and gradients of the weight are summed in it too. The result
    can be differentiated once.

    Args:
        states_MH: the model's last hidden states.
        weight_VH: of the output layer.
        bias_V: of the output layer.
        tokens_M: int64; the tokens that were drawn.
        temperature: above 0.
        with_entropy: also the entropies of the distributions, in nats.

    Returns:
        Log-probabilities ``[M]`` and entropies ``[M]`` (``None`` without ``with_entropy``).
    """
    return _HeadLogprobs.apply(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped
        states_MH, weight_VH, bias_V, tokens_M, temperature, with_entropy
    )


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.dtype = temperature, _product_dtype(weight)
        layer = _cast(weight, bias, ctx.dtype)
        chunks = list(_chunks(states, weight))
        norms: list[Tensor] = []
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        logits: Tensor | None = None
        for rows in chunks:
            logits = _logits(states[rows], layer, temperature)
            norm = logits.logsumexp(-1, keepdim=True)
            norms.append(norm)
            logprobs.append((logits.gather(1, tokens[rows].unsqueeze(1)) - norm).squeeze(1))
            if with_entropy:
                entropies.append(norm.squeeze(1) - ((logits - norm).exp_().mul_(logits)).sum(1))
        entropy = _joined(entropies, states) if with_entropy else None
        # where everything is one chunk, keeping its logits takes no more memory than making them again
        kept = logits if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(states, weight, bias, tokens, _joined(norms, states), entropy, kept)
        return _joined(logprobs, states), entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        states, weight, bias, tokens, norms, entropy, kept = ctx.saved_tensors
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        if grad_logprobs is None and grad_entropy is None:
            return (None,) * 6
        layer = _cast(weight, bias, ctx.dtype)
        exact = norms.dtype
        grad_states = torch.empty_like(states) if wants_states else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if wants_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=exact, device=bias.device) if wants_bias else None
        for rows in _chunks(states, weight):
            logits = _logits(states[rows], layer, ctx.temperature) if kept is None else kept
            grad = _grad_of_logits(
                logits,
                norms[rows],
                tokens[rows],
                None if grad_logprobs is None else grad_logprobs[rows] / ctx.temperature,
                None if grad_entropy is None else grad_entropy[rows] / ctx.temperature,
                None if entropy is None else entropy[rows],
            )
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(ctx.dtype)
            if grad_states is not None:
                grad_states[rows] = grad @ layer[0]
            if grad_weight is not None:
                _add_product(grad_weight, grad, states[rows].to(ctx.dtype))
        return (
            grad_states,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _grad_of_logits(
    logits: Tensor,
    norms: Tensor,
    tokens: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    entropy: Tensor | None,
) -> Tensor:
    """Gradient of the logits of some rows.

    With p the softmax: d logprob / d logit = onehot - p, and d entropy / d logit = -p (log p + entropy).
    """
    logs = logits - norms
    if grad_entropy is None or entropy is None:
        assert grad_logprobs is not None
        grad = logs.exp_().mul_(-grad_logprobs.unsqueeze(1))
    else:
        weights = (logs + entropy.unsqueeze(1)).mul_(-grad_entropy.unsqueeze(1))
        if grad_logprobs is not None:
            weights -= grad_logprobs.unsqueeze(1)
        grad = logs.exp_().mul_(weights)
    if grad_logprobs is not None:
        grad.scatter_add_(1, tokens.unsqueeze(1), grad_logprobs.unsqueeze(1))
    return grad


def _logits(states: Tensor, layer: tuple[Tensor, Tensor | None], temperature: float) -> Tensor:
    """Logits over the temperature, in at least float32."""
    weight, bias = layer
    logits = linear(states.to(weight.dtype), weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1 else logits.div_(temperature)


def _add_product(total: Tensor, grad: Tensor, states: Tensor) -> None:
    """Adds ``grad.T @ states``, in the dtype of the total."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), states)
    else:
        total += grad.t() @ states


def _product_dtype(weight: Tensor) -> torch.dtype:
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _joined(parts: list[Tensor], states: Tensor) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.promote_types(states.dtype, torch.float32))


def _chunks(states: Tensor, weight: Tensor) -> Iterator[slice]:
    limit = CHUNK_ELEMENTS.get(states.device.type, OTHER_CHUNK_ELEMENTS)
    size = max(MIN_ROWS, limit // max(len(weight), 1))
    return (slice(start, start + size) for start in range(0, len(states), size))
