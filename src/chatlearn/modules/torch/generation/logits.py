"""From logits to tokens: the filters, and the draw.

The filters and their order are those of transformers' logits processors: repetition penalty, bad words, minimum
length; then temperature, top-k, top-p, min-p.

Shape legend: ``N`` sequences, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from chatlearn.modules.torch.generation.bad_words import BadWords


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it.
        top_k: only the k most likely tokens; ``None`` for all.
        top_p: only the most likely tokens whose probabilities together reach this; 1 for all.
        min_p: only tokens at least this many times as likely as the most likely one; 0 for all.
        repetition_penalty: logits of tokens that the prompt or the response holds already are divided by it where
            they are positive and multiplied where they are negative; 1 for none.
        min_new_tokens: the tokens that end a response can't be drawn before it has so many.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0


class NextTokens:
    """The distribution of the next tokens of a batch of B sequences.

    Args:
        options: the filters.
        eos_token_ids: tokens that end a response.
        input_ids: ``[B, P]`` int64; prompts.
        attention_mask: ``[B, P]``; 1 on their tokens.
        bad_words: texts that never appear.
    """

    def __init__(
        self,
        options: Sampling,
        eos_token_ids: Collection[int],
        input_ids: Tensor,
        attention_mask: Tensor,
        bad_words: BadWords | None,
    ) -> None:
        self._options = options
        self._eos = torch.tensor(sorted(eos_token_ids), device=input_ids.device)
        self._prompts = input_ids, attention_mask.bool()
        self._seen_BV: Tensor | None = None
        self._words = bad_words and bad_words.watch(input_ids, attention_mask)

    def filtered(self, logits_NV: Tensor, rows_N: Tensor, counts_N: Tensor, row_list: list[int]) -> Tensor:
        """The logits of the distribution that tokens are drawn from, ``[N, V]`` float32.

        Args:
            logits_NV: of the model; may be overwritten.
            rows_N: which sequences of the batch these are, int64.
            counts_N: how many tokens each response has, int64.
            row_list: ``rows_N`` as a list.
        """
        options, logits_NV = self._options, logits_NV.float()
        if options.repetition_penalty != 1.0:
            seen_NV = self._seen(logits_NV.shape[1])[rows_N]
            logits_NV = repetition_penalized(logits_NV, seen_NV, options.repetition_penalty)
        if self._words:
            self._words.forbid(logits_NV, row_list)
        if options.min_new_tokens:
            ends = logits_NV[:, self._eos]
            logits_NV[:, self._eos] = ends.masked_fill_((counts_N < options.min_new_tokens)[:, None], -math.inf)
        if options.temperature != 1.0:
            logits_NV = logits_NV.div_(options.temperature)
        if options.top_k is not None:
            logits_NV = top_k_filtered(logits_NV, options.top_k)
        if options.top_p < 1.0:
            logits_NV = top_p_filtered(logits_NV, options.top_p)
        if options.min_p > 0.0:
            logits_NV = min_p_filtered(logits_NV, options.min_p)
        return logits_NV

    def drawn(self, tokens_N: Tensor, rows_N: Tensor, row_list: list[int]) -> None:
        """Takes note of tokens ``[N]`` that were drawn for sequences."""
        if self._seen_BV is not None:
            self._seen_BV[rows_N, tokens_N] = True
        if self._words:
            self._words.drawn(tokens_N, row_list)

    def _seen(self, vocabulary: int) -> Tensor:
        if self._seen_BV is None:
            input_ids, is_token = self._prompts
            self._seen_BV = torch.zeros(len(input_ids), vocabulary, dtype=torch.bool, device=input_ids.device)
            row, column = is_token.nonzero(as_tuple=True)
            self._seen_BV[row, input_ids[row, column]] = True
        return self._seen_BV


def repetition_penalized(logits_NV: Tensor, seen_NV: Tensor, penalty: float) -> Tensor:
    """Logits with those of seen tokens divided by the penalty where positive, multiplied by it where negative.

    Keskar et al. 2019, "CTRL", section 4.1, in the form of transformers, which treats negative logits apart.
    """
    penalized = torch.where(logits_NV < 0, logits_NV * penalty, logits_NV / penalty)
    return torch.where(seen_NV, penalized, logits_NV)


def top_k_filtered(logits_NV: Tensor, top_k: int) -> Tensor:
    """Logits with all but the k largest set to minus infinity; those equal to the k-th stay."""
    smallest = logits_NV.topk(min(top_k, logits_NV.shape[1])).values[:, -1:]
    return logits_NV.masked_fill(logits_NV < smallest, -math.inf)


def top_p_filtered(logits_NV: Tensor, top_p: float) -> Tensor:
    """Logits with the tail set to minus infinity: the least likely tokens that together have at most 1 - top_p.

    Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1. The most likely token stays.
    """
    ordered, order = logits_NV.sort(dim=-1)
    tail = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    tail[:, -1] = False
    return logits_NV.masked_fill(torch.zeros_like(tail).scatter(1, order, tail), -math.inf)


def min_p_filtered(logits_NV: Tensor, min_p: float) -> Tensor:
    """Logits with tokens less than ``min_p`` times as likely as the most likely one set to minus infinity.

    Nguyen et al. 2024, "Turning up the heat: min-p sampling", section 3.
    """
    probs = logits_NV.softmax(-1)
    return logits_NV.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), -math.inf)


def draw(logits_NV: Tensor, noise_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draws from the softmax of logits by inverting the cumulative distribution.

    Args:
        logits_NV: float32.
        noise_N: float32 in (0, 1); ``None`` takes the most likely token instead.

    Returns:
        Tokens ``[N]`` int64 and their log-probabilities ``[N]`` float32. A row without any finite logit gives a
        log-probability that isn't finite.
    """
    probs_NV = logits_NV.softmax(-1)
    if noise_N is None:
        tokens_N = logits_NV.argmax(-1)
    else:
        # float64: a float32 sum over a large vocabulary would be off by more than a rare token's probability
        cumulative_NV = probs_NV.cumsum(-1, dtype=torch.float64)
        thresholds_N1 = noise_N.to(torch.float64).unsqueeze(1) * cumulative_NV[:, -1:]
        tokens_N = torch.searchsorted(cumulative_NV, thresholds_N1, right=True).squeeze(1)
        tokens_N.clamp_(max=logits_NV.shape[1] - 1)
    return tokens_N, probs_NV.gather(1, tokens_N.unsqueeze(1)).squeeze(1).log_()
