"""Log-probabilities and entropy of next-token distributions, from logits.

Alignment: ``logits_BTV[:, t]`` is the distribution that ``tokens_BT[:, t]`` was drawn from. A causal model's output
at position t predicts token t + 1, so the caller shifts: ``token_logprobs(logits[:, :-1], tokens[:, 1:])`` gives
those of the tokens ``1 .. T-1``.

Both functions work in blocks, forward and backward, and keep nothing for the backward pass but their inputs.
Beside the logits and their gradient they need a few buffers of 64 MiB at most, where ``log_softmax`` with
``gather`` needs two float32 tensors of ``[B, T, V]``. The price: the softmax is computed again in the
backward pass, and they can be differentiated once only.

Shape legend: ``B`` samples, ``T`` tokens, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = 1 << 24
"""Logits that are turned into float32 at a time: large enough to fill a GPU, 64 MiB."""


def token_logprobs(logits_BTV: Tensor, tokens_BT: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token: its logit less the logsumexp of all logits, both over the temperature.

    Computed in float32 whatever the dtype of the logits (float64 stays). Logits of minus infinity (forbidden
    tokens) are fine.

    Args:
        logits_BTV: see the module's text for the alignment.
        tokens_BT: int64, each in ``0 .. V-1`` at padding too.
        temperature: of the softmax that the tokens were drawn from; above 0.

    Returns:
        ``[B, T]``, float32 (float64 for float64 logits). A row of logits that holds NaN gives NaN for its
        token alone.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not a positive number.
    """
    if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != tokens_BT.shape:
        raise ValueError(
            f"logits_BTV has shape {list(logits_BTV.shape)} but tokens_BT has shape {list(tokens_BT.shape)}; "
            "expected [B, T, V] and [B, T]"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number above 0, got {temperature!r}")
    return _applied(_TokenLogprobs, logits_BTV, tokens_BT, temperature)


def entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats, over the whole vocabulary and at temperature 1.

    Computed in float32 whatever the dtype of the logits (float64 stays). Logits of minus infinity count as
    probability 0.

    Returns:
        ``[B, T]``, float32 (float64 for float64 logits).

    Raises:
        ValueError: the logits are not ``[B, T, V]``.
    """
    if logits_BTV.dim() != 3:
        raise ValueError(f"logits_BTV has shape {list(logits_BTV.shape)}; expected [B, T, V]")
    return _applied(_Entropy, logits_BTV)


def _applied(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    return function.apply(*inputs)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, tokens)
        ctx.temperature = temperature
        dtype = _compute_dtype(logits)
        logprobs = torch.empty(tokens.shape, dtype=dtype, device=logits.device)
        for block in _blocks(logits):
            scaled = _scale(logits[block], temperature)
            chosen = tokens[block].unsqueeze(-1)
            logprobs[block] = torch.log_softmax(scaled, -1, dtype=dtype).gather(-1, chosen).squeeze(-1)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # d logprob / d logit = (onehot - softmax) / temperature
        logits, tokens = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        grad = (grad / ctx.temperature).unsqueeze(-1)
        for block in _blocks(logits):
            scaled = _scale(logits[block], ctx.temperature)
            softmax = torch.softmax(scaled, -1, dtype=_compute_dtype(logits))
            softmax.mul_(-grad[block]).scatter_add_(-1, tokens[block].unsqueeze(-1), grad[block])
            grad_logits[block] = softmax
        return grad_logits, None, None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        dtype = _compute_dtype(logits)
        result = torch.empty(logits.shape[:2], dtype=dtype, device=logits.device)
        for block in _blocks(logits):
            probs, logprobs = _softmax_and_log(logits[block], dtype)
            result[block] = -probs.mul_(logprobs).sum(-1)
        ctx.save_for_backward(logits, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # d entropy / d logit = -p (log p + entropy)
        logits, result = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for block in _blocks(logits):
            probs, logprobs = _softmax_and_log(logits[block], result.dtype)
            slope = probs.mul_(logprobs.add_(result[block].unsqueeze(-1)))
            grad_logits[block] = slope.mul_(-grad[block].unsqueeze(-1))
        return grad_logits


def _softmax_and_log(logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(logits, -1, dtype=dtype)
    # A probability of 0 times the clamped logarithm is 0, where 0 * inf would be NaN.
    return logprobs.exp(), logprobs.clamp_(min=torch.finfo(dtype).min)


def _scale(logits: Tensor, temperature: float) -> Tensor:
    # Division in bfloat16 would round the logits to 8 bits once more. At temperature 1 the softmax kernel
    # casts as it reads.
    return logits if temperature == 1 else logits.to(_compute_dtype(logits)) / temperature


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Index the logits by samples and tokens in blocks of at most ``BLOCK_ELEMENTS`` (one token at least).

    Slices of the two dimensions, not of a flattened one: the usual ``logits[:, :-1]`` can't be flattened
    without a copy.
    """
    num_samples, num_tokens, vocabulary = logits.shape
    tokens_a_block = max(1, BLOCK_ELEMENTS // max(1, vocabulary))
    rows = max(1, tokens_a_block // max(1, num_tokens))
    columns = min(max(1, num_tokens), tokens_a_block)
    for row in range(0, num_samples, rows):
        for column in range(0, num_tokens, columns):
            yield slice(row, row + rows), slice(column, column + columns)
