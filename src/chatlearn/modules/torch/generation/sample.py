"""The loop that samples responses: who runs, what is drawn, who has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatlearn.errors import DataError
from chatlearn.modules.torch.generation.bad_words import BadWords
from chatlearn.modules.torch.generation.decoder import Prompts, make_decoder
from chatlearn.modules.torch.generation.logits import NextTokens, Sampling, draw

_LEAVING_SHARE = 16
"""Sequences that have ended are taken out when they are one in so many; a few at a time aren't worth a copy."""
_JOINING_SHARE = 8
"""Prompts join when one slot in so many is free, so that they are prefilled together."""

Ended = Callable[[list[int], list[list[int]]], list[bool]]
"""Called after each token with the rows that go on and their responses so far; gives which of them have ended."""


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
    options: Sampling | None = None,
    bad_words: BadWords | None = None,
    noise: Tensor | None = None,
    ended: Ended | None = None,
    max_running: int | None = None,
) -> Responses:
    """Continues left-padded prompts until each has ended or has ``max_new_tokens``.

    A token is drawn by inverting the cumulative distribution at a number that belongs to the sample, so what a sample
    gets does not depend on the noise of its neighbours. Equal arguments give equal bits.

    Args:
        model: a Hugging Face causal language model.
        input_ids: ``[B, P]`` int64, padded on the left; equal neighbours are prefilled once.
        attention_mask: ``[B, P]`` int64; each row has a token.
        max_new_tokens: the most tokens of a response.
        eos_token_ids: tokens that end a response.
        pad_token_id: fills up after the end.
        options: how tokens are drawn; by default from the model's distribution as it is.
        bad_words: texts that never appear.
        noise: ``[B, max_new_tokens]`` float32 in (0, 1); ``None`` takes the most likely token instead.
        ended: ends responses beside the tokens that do.
        max_running: the most sequences at once; the next prompts join as sequences end. ``None`` for all.

    Raises:
        DataError: a logit is NaN, or no token has a probability; the row is named.
    """
    run = _Run(model, input_ids, attention_mask, max_new_tokens, eos_token_ids, noise, ended)
    run.next_tokens = NextTokens(options or Sampling(), eos_token_ids, input_ids, attention_mask, bad_words)
    run.go(min(max_running or len(input_ids), len(input_ids)))
    return run.responses(pad_token_id)


class _Run:
    """The state of one call of :func:`sample`.

    Slots are the running sequences, in the decoder's order. Those that have ended stay until some are taken out; what
    is drawn for them lies beyond their length, where nothing reads it.
    """

    next_tokens: NextTokens

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        eos_token_ids: Collection[int],
        noise: Tensor | None,
        ended: Ended | None,
    ) -> None:
        num_rows = len(input_ids)
        prompts = Prompts(input_ids, attention_mask)
        self.decoder = make_decoder(model, prompts)
        self.max_new_tokens, self.noise, self.ended = max_new_tokens, noise, ended
        self.eos_token_ids = frozenset(eos_token_ids)
        self.tokens = input_ids.new_zeros(num_rows, max_new_tokens)
        self.logprobs = torch.zeros(num_rows, max_new_tokens, device=input_ids.device)
        # the longest first: neighbours that are prefilled together need little padding, and later ones fit in
        self.waiting = sorted(range(num_rows), key=lambda row: -prompts.lengths[row])
        self.lengths, self.finished = [0] * num_rows, [False] * num_rows
        self.texts: list[list[int]] = [[] for _ in range(num_rows)]

        self.num_steps = 0
        self.slot_rows: list[int] = []
        self.births: list[int] = []  # steps before each slot's first token
        self.alive: list[bool] = []
        self.rows_N = self.counts_N = self.last_N = input_ids.new_empty(0)

    def go(self, max_running: int) -> None:
        """Runs all sequences to their ends."""
        while self.waiting or any(self.alive):
            num_dead = self.alive.count(False)
            num_free = max_running - len(self.alive) + num_dead
            may_join = self.decoder.joins or num_free == max_running
            joins = bool(self.waiting) and may_join and num_free * _JOINING_SHARE >= max_running
            if num_dead and (joins or self._is_full() or num_dead * _LEAVING_SHARE >= len(self.alive)):
                self._leave()
            if joins:
                self._join(self.waiting[:num_free], max_running)
                del self.waiting[:num_free]
            else:
                self._step(max_running if self.waiting else len(self.alive))

    def responses(self, pad_token_id: int) -> Responses:
        """What was sampled, in the order of the batch."""
        width, device = max(self.lengths), self.tokens.device
        lengths_B1 = torch.tensor(self.lengths, device=device).unsqueeze(1)
        mask = torch.arange(width, device=device) < lengths_B1
        tokens = self.tokens[:, :width].masked_fill(~mask, pad_token_id)
        logprobs = self.logprobs[:, :width].masked_fill(~mask, 0)
        wrong = (~logprobs.isfinite()).nonzero()
        if len(wrong):
            row, token = _listed(wrong[0])
            raise DataError(
                f"row {row} of the batch: token {token} of its response can't be drawn, since a logit is NaN or no "
                f"token is left. Look for NaN or infinite weights (a diverged run, float16), or relax bad_words and "
                f"min_new_tokens."
            )
        return Responses(tokens, mask.float(), logprobs, torch.tensor(self.finished, device=device))

    def _join(self, rows: list[int], max_running: int) -> None:
        first, device = len(self.slot_rows), self.rows_N.device
        self.slot_rows += rows
        self.births += [self.num_steps] * len(rows)
        self.alive += [True] * len(rows)
        logits = self.decoder.start(rows, max_running, self.max_new_tokens)
        self.rows_N = torch.tensor(self.slot_rows, device=device)
        self.counts_N = torch.cat([self.counts_N, self.counts_N.new_zeros(len(rows))])
        self._take(logits, first)

    def _step(self, num_slots: int) -> None:
        remaining = self.max_new_tokens if self.waiting else self.max_new_tokens - self._length(max(self.births))
        logits = self.decoder.step(self.last_N, num_slots, remaining)
        self.num_steps += 1
        self._take(logits, 0)

    def _take(self, logits: Tensor, first: int) -> None:
        """Draws a token for each of the slots from ``first`` on."""
        rows_N, counts_N, rows = self.rows_N[first:], self.counts_N[first:], self.slot_rows[first:]
        noise_N = None if self.noise is None else self.noise[rows_N, counts_N]
        drawn_N, logprobs_N = draw(self.next_tokens.filtered(logits, rows_N, counts_N, rows), noise_N)
        self.next_tokens.drawn(drawn_N, rows_N, rows)
        self.tokens[rows_N, counts_N] = drawn_N
        self.logprobs[rows_N, counts_N] = logprobs_N
        counts_N.add_(1)
        self.last_N = torch.cat([self.last_N, drawn_N]) if first else drawn_N
        self._note_ends(_listed(drawn_N), first)

    def _note_ends(self, drawn: list[int], first: int) -> None:
        eos_token_ids, alive = self.eos_token_ids, self.alive
        for slot, token in enumerate(drawn, first):
            if token in eos_token_ids and alive[slot]:
                self._end(slot, finished=True)
        slots = [slot for slot in range(first, len(alive)) if alive[slot]] if self.ended else []
        if self.ended is not None and slots:
            rows = [self.slot_rows[slot] for slot in slots]
            for slot, row in zip(slots, rows, strict=True):
                self.texts[row].append(drawn[slot - first])
            for slot, has_ended in zip(slots, self.ended(rows, [self.texts[row] for row in rows]), strict=True):
                if has_ended:
                    self._end(slot, finished=True)
        if self._is_full():
            for slot in range(len(alive)):
                if alive[slot] and self._length(self.births[slot]) >= self.max_new_tokens:
                    self._end(slot, finished=False)

    def _end(self, slot: int, *, finished: bool) -> None:
        row = self.slot_rows[slot]
        self.lengths[row], self.finished[row] = self._length(self.births[slot]), finished
        self.alive[slot] = False

    def _leave(self) -> None:
        """Takes out all slots that have ended."""
        order = _closed_up(self.alive)
        self.decoder.keep(order)
        index = torch.tensor(order, dtype=torch.int64, device=self.rows_N.device)
        self.rows_N, self.counts_N, self.last_N = self.rows_N[index], self.counts_N[index], self.last_N[index]
        self.slot_rows, self.births = ([values[slot] for slot in order] for values in (self.slot_rows, self.births))
        self.alive = [True] * len(order)

    def _is_full(self) -> bool:
        """Whether the oldest slot has as many tokens as a response can have."""
        return self._length(min(self.births)) >= self.max_new_tokens

    def _length(self, birth: int) -> int:
        return 1 + self.num_steps - birth


def _closed_up(alive: list[bool]) -> list[int]:
    """The slots that stay, the last ones in the places of those that leave, so that few change places."""
    count = sum(alive)
    tail = [slot for slot in range(count, len(alive)) if alive[slot]]
    places = iter(tail)
    return [slot if alive[slot] else next(places) for slot in range(count)]


def _listed(values: Tensor) -> list[Any]:
    return values.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # a bare list
