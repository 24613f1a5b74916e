"""Sequences that a model continues, token by token: prefill, one step, and who leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from chatlearn.modules.torch.generation.llama import LlamaStep, is_plain_llama

if TYPE_CHECKING:
    from chatlearn.modules.torch.generation.cache import SlotCache

_PREFILL_TOKENS = 4096
"""Prompts of other lengths are prefilled apart from this many tokens on, where that saves padding."""
_MAX_PREFILL_TOKENS = 1 << 16
"""The most tokens of a prefill, so that its activations stay small."""


class Prompts:
    """Left-padded prompts, of which equal neighbours are prefilled once.

    Args:
        input_ids: ``[B, P]`` int64.
        attention_mask: ``[B, P]``.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.input_ids, self.mask = input_ids, attention_mask.bool()
        same = ((input_ids[1:] == input_ids[:-1]) & (self.mask[1:] == self.mask[:-1])).all(1)
        self.lengths, self._same = _listed(self.mask.sum(1)), [False, *_listed(same)]

    def parts(self, rows: Sequence[int], *, num_parts: int | None = None) -> Iterator[tuple[list[int], list[int]]]:
        """Cuts rows (by length, longest first) into parts to prefill at once.

        Args:
            rows: of the prompts.
            num_parts: 1 for all at once; ``None`` for as many as save time or memory.

        Yields:
            The rows to prefill, and for each row of the part which of these it equals.
        """
        first: list[int] = []
        source: list[int] = []
        previous: int | None = None
        for row in rows:
            is_copy = self._same[row] and previous == row - 1
            if not is_copy and first and num_parts is None and self._ends(first, row):
                yield first, source
                first, source = [], []
            if not is_copy:
                first.append(row)
            source.append(len(first) - 1)
            previous = row
        yield first, source

    def _ends(self, part: list[int], row: int) -> bool:
        """Whether a row begins a part of its own."""
        longest = self.lengths[part[0]]
        num_tokens = longest * len(part)
        is_shorter = 4 * self.lengths[row] <= 3 * longest
        return num_tokens >= _MAX_PREFILL_TOKENS or (is_shorter and num_tokens >= _PREFILL_TOKENS)


class Decoder(Protocol):
    """Running sequences. Those that join come behind the others; slots are counted from 0 without gaps."""

    joins: bool
    """Whether sequences can join while others run."""

    def start(self, rows: Sequence[int], num_slots: int, remaining: int) -> Tensor:
        """Prefills prompts.

        Args:
            rows: of the prompts, longest first.
            num_slots: the most sequences that run at once from now on.
            remaining: the most tokens that any sequence can still get.

        Returns:
            Logits of their next tokens ``[len(rows), V]``.
        """
        ...

    def step(self, tokens_N: Tensor, num_slots: int, remaining: int) -> Tensor:
        """Logits ``[N, V]`` of all running sequences' next tokens, after these ``[N]``; as :meth:`start`."""
        ...

    def keep(self, order: list[int]) -> None:
        """Slot i gets the sequence of slot ``order[i]``; the others leave."""
        ...


def make_decoder(model: Any, prompts: Prompts) -> Decoder:
    """The decoder for a model of transformers; one that lets sequences join, where its layers allow that."""
    from chatlearn.modules.torch.generation.cache import SlotCache, num_plain_layers

    num_layers = num_plain_layers(model.config)
    return _SlotDecoder(model, prompts, SlotCache(num_layers)) if num_layers else _PlainDecoder(model, prompts)


class _SlotDecoder:
    """Running sequences in a :class:`~chatlearn.modules.torch.generation.cache.SlotCache`."""

    joins = True

    def __init__(self, model: Any, prompts: Prompts, cache: SlotCache) -> None:
        self._model, self._prompts, self._cache = model, prompts, cache
        # other kinds of attention, and models that count in the mask (ALiBi), make what they need of two dimensions
        is_sdpa = getattr(model.config, "_attn_implementation", None) == "sdpa"
        self._takes_4d = is_sdpa and getattr(model, "_supports_attention_backend", False)
        self._short = LlamaStep(model) if is_plain_llama(model) else None
        self._positions_N = prompts.input_ids.new_empty(0)
        self._visible: Any = None
        """``[slots, columns, 1]`` bool: what a sequence attends to; true from the cache's ``stop`` on."""
        self._first: list[int] = []
        """The column of each sequence's first token."""
        self._is_even = True
        """Whether all sequences begin in one column, so that no mask is needed."""

    def start(self, rows: Sequence[int], num_slots: int, remaining: int) -> Tensor:
        lengths, cache = self._prompts.lengths, self._cache
        self._reserve(num_slots, lengths[rows[0]], remaining)
        logits = [self._prefill(*part) for part in self._prompts.parts(rows)]
        added = torch.tensor([lengths[row] for row in rows], device=self._positions_N.device)
        self._positions_N = torch.cat([self._positions_N, added])
        self._first += [cache.stop - lengths[row] for row in rows]
        self._narrow()
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def step(self, tokens_N: Tensor, num_slots: int, remaining: int) -> Tensor:
        cache = self._cache
        self._reserve(num_slots, 0, remaining)
        if self._short is not None:
            logits = self._short(tokens_N, self._mask(), self._positions_N, cache)
        else:
            logits = _next_logits(self._model, tokens_N[:, None], self._mask(), self._positions_N[:, None], cache)
        self._positions_N.add_(1)
        cache.stop += 1
        return logits

    def keep(self, order: list[int]) -> None:
        index = torch.tensor(order, dtype=torch.int64, device=self._positions_N.device)
        self._cache.keep(order)
        self._visible[: len(order)] = self._visible[index]
        self._positions_N = self._positions_N[index]
        self._first = [self._first[slot] for slot in order]
        self._narrow()

    def _narrow(self) -> None:
        """Leaves out the first columns that no running sequence needs."""
        self._cache.start = min(self._first, default=self._cache.stop)
        self._is_even = all(first == self._cache.start for first in self._first)

    def _mask(self) -> Tensor | None:
        if self._is_even:
            return None
        cache = self._cache
        visible = self._visible[: cache.num_running, cache.start : cache.stop + 1, 0]
        return visible[:, None, None] if self._takes_4d else visible

    def _prefill(self, rows: list[int], source: list[int]) -> Tensor:
        from transformers import DynamicCache

        cache, prompts = self._cache, DynamicCache()
        logits, mask = _prefilled(self._model, self._prompts, rows, prompts)
        index = _source_index(rows, source, logits.device)
        slots = slice(cache.num_running, cache.num_running + len(source))
        start = cache.stop - mask.shape[1]
        self._visible[slots, :start] = False
        self._visible[slots, start : cache.stop, 0] = mask if index is None else mask[index]
        self._visible[slots, cache.stop :] = True
        cache.join(prompts, index)
        return logits if index is None else logits[index]

    def _reserve(self, num_slots: int, before: int, after: int) -> None:
        cache = self._cache
        old = slice(cache.start, cache.stop)
        if cache.reserve(num_slots, before, after):
            self._first = [column + cache.start - old.start for column in self._first]
            if self._visible is None:
                self._visible = self._prompts.mask.new_ones(cache.num_slots, cache.capacity, 1)
            else:
                self._visible = cache.moved(self._visible, old)
                self._visible[:, cache.stop :] = True


class _PlainDecoder:
    """Running sequences in the cache that transformers makes for a model: sliding windows, recurrent states, ….

    No sequence can join: all rows of such a cache have seen equally many columns.
    """

    joins = False

    def __init__(self, model: Any, prompts: Prompts) -> None:
        self._model, self._prompts = model, prompts
        self._cache: Any = None
        self._mask = self._positions_N = prompts.mask

    def start(self, rows: Sequence[int], num_slots: int, remaining: int) -> Tensor:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)
        ((first, source),) = self._prompts.parts(rows, num_parts=1)
        logits, self._mask = _prefilled(self._model, self._prompts, first, self._cache)
        self._positions_N = self._mask.sum(1)
        index = _source_index(first, source, logits.device)
        if index is None:
            return logits
        self._select(index)
        return logits[index]

    def step(self, tokens_N: Tensor, num_slots: int, remaining: int) -> Tensor:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        logits = _next_logits(self._model, tokens_N[:, None], self._mask, self._positions_N[:, None], self._cache)
        self._positions_N.add_(1)
        return logits

    def keep(self, order: list[int]) -> None:
        self._select(torch.tensor(order, dtype=torch.int64, device=self._mask.device))

    def _select(self, index: Tensor) -> None:
        self._mask, self._positions_N = self._mask[index], self._positions_N[index]
        self._cache.reorder_cache(index)


def _prefilled(model: Any, prompts: Prompts, rows: list[int], cache: Any) -> tuple[Tensor, Tensor]:
    """Logits ``[N, V]`` after prompts (longest first), and their mask ``[N, longest]`` bool; fills the cache."""
    longest = prompts.lengths[rows[0]]
    is_all = len(rows) == len(prompts.lengths) and longest == prompts.mask.shape[1] and rows == list(range(len(rows)))
    input_ids, mask = prompts.input_ids, prompts.mask
    if not is_all:
        input_ids, mask = input_ids[rows, -longest:], mask[rows, -longest:]
    is_padded = prompts.lengths[rows[-1]] != longest
    return _next_logits(model, input_ids, mask if is_padded else None, _positions(mask), cache), mask


def _source_index(rows: list[int], source: list[int], device: torch.device) -> Tensor | None:
    """Which prefilled row each sequence gets; ``None`` where each has its own."""
    return torch.tensor(source, device=device) if len(source) > len(rows) else None


def _next_logits(model: Any, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
    """Logits ``[N, V]`` after the last of ``input_ids`` ``[N, L]``."""
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_(min=0)


def _listed(values: Tensor) -> list[Any]:
    return values.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # a bare list
