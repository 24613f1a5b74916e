"""Samples as lines of JSON that every reader takes, whatever a flow yields."""

from __future__ import annotations

import bdb
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from chatlearn.guards import is_dict, is_instance, is_mapping, is_sequence
from chatlearn.types import Batch, SampleIds

_MAX_NUMBERS = 4096
"""Larger values of a sample are described, not written out."""

_MAX_DEPTH = 32
"""Deeper values become text; a value that holds itself would have no end."""

_MAX_BITS = 10_000
"""Python writes no longer integers as decimals."""


def sample_lines(batch: Batch, ids: SampleIds, episode: int) -> list[str]:
    """Each row of a batch as :func:`sample_line` writes it.

    Args:
        batch: columns by name.
        ids: of its rows; their weight version stands in the lines too.
        episode: that made it, from 1.
    """
    return [
        sample_line(
            {"sample_id": sample, "group_id": group, "episode": episode, "weight_version": ids.weight_version},
            batch,
            row,
        )
        for row, (sample, group) in enumerate(zip(ids.sample_ids, ids.group_ids, strict=True))
    ]


def logged_rows(parts: Sequence[SampleIds], limit: int | Literal["all"]) -> list[int]:
    """How many rows at the beginning of each batch of an episode are written: the first samples, in whole groups as
    :func:`num_logged` counts them.

    Args:
        parts: the ids of each batch.
        limit: ``runtime.log_samples``.
    """
    left = num_logged([group for ids in parts for group in ids.group_ids], limit)
    counts: list[int] = []
    for ids in parts:
        counts.append(min(left, len(ids)))
        left -= counts[-1]
    return counts


def num_logged(group_ids: Sequence[int], limit: int | Literal["all"]) -> int:
    """How many of the first samples are written: as many whole groups as ``limit`` has room for.

    Of a first group that is larger than ``limit`` it is ``limit`` samples.

    Args:
        group_ids: of all samples of the episode, those of a group one after another.
        limit: ``runtime.log_samples``.
    """
    count = len(group_ids) if limit == "all" else min(limit, len(group_ids))
    ends = (end for end in range(count, 0, -1) if end == len(group_ids) or group_ids[end - 1] != group_ids[end])
    return next(ends, count)


def sample_line(ids: Mapping[str, Any], batch: Batch, row: int) -> str:
    """One sample as a line of valid JSON, with its newline.

    Token fields (those with the shape of the row's ``response_mask``) hold the response's tokens only, and ``length``
    is their number. ``advantages`` that are the same on all tokens are that one number. A NaN or an infinity is
    ``null``, and ``non_finite`` holds it as text that ``float()`` reads, by its dotted path. Numbers of
    numpy and torch are numbers; what JSON has no form for is text. A column that is called as an id is, or
    ``non_finite``, is written with ``_`` behind its name; one called ``length`` takes the place of the number of
    tokens.

    Args:
        ids: the first values of the line.
        batch: columns by name.
        row: which of its rows.
    """
    odd: dict[str, str] = {}
    values: dict[str, Any] = {**ids, **_length(batch, row)}
    taken = {*ids, "non_finite"}
    for key, value in _columns(batch, row).items():
        name = _free_name(key, taken)
        taken.add(name)
        values[name] = _plain(value, name, odd, _MAX_DEPTH)
    return json.dumps({**values, "non_finite": odd} if odd else values, allow_nan=False) + "\n"


def _columns(batch: Batch, row: int) -> dict[Any, Any]:
    """One row of each column; of token fields the response's tokens only."""
    mask = batch.get("response_mask")
    response = mask[row].bool() if isinstance(mask, torch.Tensor) else None
    values: dict[Any, Any] = {}
    for key, column in batch.items():
        if key in ("attention_mask", "response_mask"):
            continue
        if column is None:
            values[key] = None
        elif is_dict(column):
            values[key] = _columns(column, row)
        else:
            value = column[row]
            is_token_field = is_instance(value, torch.Tensor) and response is not None and value.shape == response.shape
            values[key] = _token_values(key, value[response]) if is_token_field else value
    return values


def _token_values(key: Any, values: torch.Tensor) -> torch.Tensor:
    """The values on the response's tokens; advantages of a whole response as the one number that they are."""
    is_one_number = key == "advantages" and values.dim() == 1 and len(values) > 0 and bool((values == values[0]).all())
    return values[0] if is_one_number else values


def _length(batch: Batch, row: int) -> dict[str, int]:
    """The number of response tokens, where the batch says which they are."""
    mask = batch.get("response_mask")
    return {"length": int(mask[row].bool().sum())} if isinstance(mask, torch.Tensor) and "length" not in batch else {}


def _plain(value: Any, path: str, odd: dict[str, str], depth: int) -> Any:
    """A value as JSON has it; ``odd`` gets the numbers that JSON does not have, by their paths."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if is_instance(value, (np.bool_, np.str_)):
        return value.item()
    if is_instance(value, np.timedelta64):  # numpy counts it among the integers
        return _text(value)
    if is_instance(value, (int, np.integer)):
        number = int(value)
        return number if number.bit_length() <= _MAX_BITS else hex(number)
    if is_instance(value, (float, np.floating)):
        return _number(float(value), path, odd)
    if depth == 0:
        return _text(value)
    if is_instance(value, (torch.Tensor, np.ndarray)):
        return _described(value) or _plain(value.tolist(), path, odd, depth - 1)
    if is_mapping(value):
        parts: dict[str, Any] = {}
        for key, part in value.items():
            name = _free_name(key, parts)
            parts[name] = _plain(part, f"{path}.{name}", odd, depth - 1)
        return parts
    if is_sequence(value):
        return [_plain(part, f"{path}.{index}", odd, depth - 1) for index, part in enumerate(value)]
    return _text(value)


def _described(value: Any) -> str:
    """Words for a tensor or an array that is not written out, or is not in a form that could be; else nothing."""
    if isinstance(value, torch.Tensor) and (value.is_nested or value.is_meta or value.layout is not torch.strided):
        return f"{value.dtype} without plain numbers"
    return f"{value.dtype} {list(value.shape)}" if math.prod(value.shape) > _MAX_NUMBERS else ""


def _number(value: float, path: str, odd: dict[str, str]) -> float | None:
    if math.isfinite(value):
        return value
    odd[path] = str(value)
    return None


def _free_name(key: Any, taken: Collection[str]) -> str:
    """A key as text that is no other key's."""
    name = key if isinstance(key, str) else _text(key)
    while name in taken:
        name += "_"
    return name


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # of an object of the user's; a sample is no reason to end a run
        if isinstance(error, bdb.BdbQuit):
            raise
        return f"<{type(value).__name__}>"
