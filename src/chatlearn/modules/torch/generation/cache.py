"""A KV cache whose rows are slots: sequences join and leave, and a new token moves nothing that is there.

Keys and values of a layer lie in buffers ``[slots, heads, columns, head size]``. All running sequences write their
next token into the same column, so a model sees views of the buffers, never copies. A prompt that joins stands just
before that column; what is further left in its row is for nobody.
"""

from __future__ import annotations

from typing import Any

# pyright: reportIncompatibleVariableOverride=false, reportUnknownMemberType=false
# transformers types its layers and their tensors more narrowly than they are, or not at all.
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

_MIN_ROOM = 256
"""Columns that buffers have for new tokens at least, or as many as can still be needed."""


def num_plain_layers(config: Any) -> int:
    """The number of a model's layers, if each attends to all earlier tokens and keeps plain keys and values, so that
    a :class:`SlotCache` can stand for the cache that transformers would make; else 0.
    """
    layers = DynamicCache(config=config).layers
    return len(layers) if all(type(layer) is DynamicLayer for layer in layers) else 0


class SlotCache(Cache):
    """Keys and values of running sequences, which fill the first slots.

    Args:
        num_layers: of the model.

    Attributes:
        num_running: the slots that the model sees.
        start: the first column that it sees.
        stop: the column that the next token is written to.
        capacity: columns of the buffers.
    """

    layers: Any
    num_slots: int = 0
    num_running: int = 0
    start: int = 0
    stop: int = 0
    capacity: int = 0

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_Slots(self) for _ in range(num_layers)])

    def reserve(self, num_slots: int, before: int, after: int) -> bool:
        """Makes room: ``num_slots`` slots, ``before`` columns up to :attr:`stop`, and at least one from there on.

        Args:
            num_slots: the most sequences from now on.
            before: tokens of the longest prompt that joins.
            after: the most tokens that any sequence can still get.

        Returns:
            Whether there are new buffers, with columns moved.
        """
        if num_slots <= self.num_slots and before <= self.stop < self.capacity:
            return False
        width = self.stop - self.start
        stop = max(before, width)
        old, self.start, self.stop = slice(self.start, self.stop), stop - width, stop
        self.num_slots, self.capacity = num_slots, stop + min(after, max(_MIN_ROOM, stop))
        for layer in self.layers:
            layer.keys, layer.values = self.moved(layer.keys, old), self.moved(layer.values, old)
        return True

    def moved(self, buffer: Any, old: slice) -> Any:
        """A new buffer with the running sequences' columns ``old`` of another where they belong now."""
        if buffer is None:
            return None
        new = buffer.new_empty(self.num_slots, *buffer.shape[1:-2], self.capacity, buffer.shape[-1])
        new[: self.num_running, ..., self.start : self.stop, :] = buffer[: self.num_running, ..., old, :]
        return new

    def join(self, prompts: Any, source: Tensor | None) -> None:
        """Puts prompts behind the running sequences, up to the column :attr:`stop`.

        Args:
            prompts: their keys and values.
            source: int64; which row of ``prompts`` each new sequence gets; ``None``: one after another.
        """
        added = 0
        for layer, prompt in zip(self.layers, prompts.layers, strict=True):
            added = layer.join(prompt.keys, prompt.values, source)
        self.num_running += added

    def keep(self, order: list[int]) -> None:
        """Slot i gets the sequence of slot ``order[i]``, and all others leave. Only what changes places is copied."""
        moves = [(slot, old) for slot, old in enumerate(order) if slot != old]
        self.num_running = len(order)
        if moves:
            columns = slice(self.start, self.stop)
            to, origin = zip(*moves, strict=True)
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    move_rows(buffer[:, :, columns], to, origin)


def move_rows(buffer: Tensor, to: tuple[int, ...], origin: tuple[int, ...]) -> None:
    """Copies some rows of a tensor over others, in place; no row is both."""
    if buffer.is_cpu and len(to) < 32:  # a copy of a row is faster than an index
        for place, old in zip(to, origin, strict=True):
            buffer[place].copy_(buffer[old])
    else:
        buffer[list(to)] = buffer[list(origin)]


class _Slots(CacheLayerMixin):
    """One layer of a :class:`SlotCache`."""

    keys: Any
    values: Any

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def join(self, keys: Tensor, values: Tensor, source: Tensor | None) -> int:
        cache, width = self._cache, keys.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        count = len(keys) if source is None else len(source)
        slots = slice(cache.num_running, cache.num_running + count)
        for buffer, new in ((self.keys, keys), (self.values, values)):
            # what is invisible is weighted by 0, and 0 times what new memory may hold (NaN) wouldn't be 0
            buffer[slots, :, : cache.stop - width] = 0
            buffer[slots, :, cache.stop - width : cache.stop] = new if source is None else new[source]
        return count

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        cache = self._cache
        self.keys, self.values = (
            states.new_empty(cache.num_slots, states.shape[1], cache.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, stop, count = self._cache.start, self._cache.stop, self._cache.num_running
        end = stop + key_states.shape[-2]
        self.keys[:count, :, stop:end] = key_states
        self.values[:count, :, stop:end] = value_states
        return self.keys[:count, :, start:end], self.values[:count, :, start:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.stop - self._cache.start

    def get_max_length(self) -> int:
        return -1
