"""Sampling responses from a causal language model, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatlearn.modules.torch.scoring import positions


@dataclass(frozen=True)
class Responses:
    """What was sampled for B prompts, R tokens at most.

    Attributes:
        tokens: ``[B, R]`` int64; the padding token after the end of a response.
        mask: ``[B, R]`` float32; 1 on sampled tokens, the one that ends the response included.
        logprobs: ``[B, R]`` float32; of the sampled tokens, under the distribution that they were drawn from; 0
            elsewhere.
        finished: ``[B]`` bool; the response ended by itself, not at the length limit.
    """

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    finished: Tensor


@torch.inference_mode()
def sample(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    ended: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Responses:
    """Continues left-padded prompts until each has ended or has ``max_new_tokens``.

    A token is drawn by inverting the cumulative distribution at a number that belongs to the sample, so what a sample
    gets does not depend on the noise of its neighbours.

    Args:
        model: a Hugging Face causal language model.
        input_ids: ``[B, P]`` int64, padded on the left.
        attention_mask: ``[B, P]`` int64.
        max_new_tokens: the most tokens of a response.
        eos_token_ids: tokens that end a response.
        pad_token_id: fills up after the end.
        temperature: logits are divided by it.
        noise: ``[B, max_new_tokens]`` float32 in (0, 1); ``None`` takes the most likely token instead.
        ended: called after each token with the responses so far ``[B, L]`` int64 and which of them go on ``[B]`` bool;
            gives which of these have ended, ``[B]`` bool.
    """
    from transformers import DynamicCache

    batch_size = input_ids.shape[0]
    eos = torch.tensor(sorted(eos_token_ids), device=input_ids.device)
    tokens = input_ids.new_full((batch_size, max_new_tokens), pad_token_id)
    logprobs = torch.zeros(batch_size, max_new_tokens, device=input_ids.device)
    mask = torch.zeros(batch_size, max_new_tokens, device=input_ids.device)
    running = torch.ones(batch_size, dtype=torch.bool, device=input_ids.device)
    cache = DynamicCache(config=model.config)
    inputs, position_ids = input_ids, positions(attention_mask)
    length = 0
    while length < max_new_tokens:
        output = model(
            input_ids=inputs,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        drawn, drawn_logprobs = _draw(logits, temperature, None if noise is None else noise[:, length])
        tokens[:, length] = torch.where(running, drawn, pad_token_id)
        logprobs[:, length] = torch.where(running, drawn_logprobs, 0)
        mask[:, length] = running
        running = running & ~torch.isin(drawn, eos)
        length += 1
        if ended is not None:
            running = running & ~ended(tokens[:, :length], running)
        if not running.any():
            break
        inputs = tokens[:, length - 1 : length]
        position_ids = position_ids[:, -1:] + 1
        # a sequence that has ended goes on attending to itself; nothing reads what it computes
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    return Responses(tokens[:, :length], mask[:, :length], logprobs[:, :length], ~running)


def _draw(logits_BV: Tensor, temperature: float, noise_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens ``[B]`` and their log-probabilities ``[B]`` float32."""
    logprobs_BV = torch.log_softmax(logits_BV if temperature == 1.0 else logits_BV / temperature, -1)
    if noise_B is None:
        drawn_B = logits_BV.argmax(-1)
    else:
        # float64: a float32 sum over a large vocabulary would be off by more than a rare token's probability
        cumulative_BV = logprobs_BV.exp().double().cumsum(-1)
        thresholds_B1 = noise_B.to(cumulative_BV).unsqueeze(1) * cumulative_BV[:, -1:]
        drawn_B = (
            torch.searchsorted(cumulative_BV, thresholds_B1, right=True).squeeze(1).clamp_(max=logits_BV.shape[1] - 1)
        )
    return drawn_B, logprobs_BV.gather(1, drawn_B.unsqueeze(1)).squeeze(1)
