"""Micro-batches made anew under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatlearn.data.balance import karmarkar_karp
from chatlearn.data.collate import merge, pack, select
from chatlearn.errors import DataError
from chatlearn.types import Batch, num_rows


def regrouped(module: Any, minibatch: Sequence[Batch], first_row: int, max_tokens: int, packing: bool) -> list[Batch]:
    """The rows of a minibatch in micro-batches of at most ``max_tokens`` tokens, always the same for the same rows.

    With packing a micro-batch has as many tokens as its sequences have, and the micro-batches are about equally large
    (Karmarkar and Karp 1982). Without, its padding counts as well, and neighbours in length come together.

    Args:
        module: a trainer, for errors.
        minibatch: micro-batches with ``attention_mask``.
        first_row: place of the minibatch's first row among the rows of the call.
        max_tokens: the budget.
        packing: see above.

    Raises:
        DataError: a sequence alone is longer than the budget.
    """
    lengths: list[int] = [length for batch in minibatch for length in batch["attention_mask"].sum(1).tolist()]
    for row, length in enumerate(lengths):
        if length > max_tokens:
            raise DataError(
                f"{module.name}.train_step: {_name(module, first_row + row)} has {length} tokens, but "
                f"models.{module.name}.args.max_tokens_per_micro_batch is {max_tokens}. Raise it to {length} at least, "
                f"or make prompts and responses shorter (max_prompt_tokens, max_new_tokens)."
            )
    groups = balanced_groups(lengths, max_tokens) if packing else padded_groups(lengths, max_tokens)
    merged = merge(minibatch)
    return [select(merged, rows) for rows in groups]


def balanced_groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups of samples with sums of at most ``max_tokens``: as few as first fit decreasing needs, and of about equal
    sums where that is within the budget.
    """
    fitted = pack(lengths, max_tokens)
    balanced = karmarkar_karp(lengths, len(fitted)) if fitted else []
    within = all(sum(lengths[index] for index in group) <= max_tokens for group in balanced)
    return [group for group in balanced if group] if within else fitted


def padded_groups(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups of samples of similar length, the longest of a group times its size being at most ``max_tokens``."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or (len(groups[-1]) + 1) * longest > max_tokens:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return sorted(sorted(group) for group in groups)


def _name(module: Any, row: int) -> str:
    ids: tuple[int, ...] = module.batch.sample_ids
    return f"sample {ids[row]}" if row < len(ids) else f"row {row} of the global batch"


def count_rows(minibatch: Sequence[Batch]) -> int:
    """Rows of all micro-batches."""
    return sum(num_rows(batch) for batch in minibatch)
