"""Columns of a batch, as the rewards that come with chatlearn read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chatlearn.errors import DataError


def column_of(columns: Mapping[str, Any], name: str, who: str) -> Sequence[Any]:
    """A column by name.

    Raises:
        DataError: the batch lacks it.
    """
    if columns.get(name) is None:
        raise DataError(
            f"{who} reads the column {name!r}, which the batch does not have (it has "
            f"{', '.join(map(repr, sorted(columns))) or 'none'}). Add it to every sample of the data set, or set "
            "`column` to the one that holds the answers."
        )
    return columns[name]


def ended(finished: Sequence[bool] | None, count: int) -> list[bool]:
    """Whether each completion has ended by itself; all have where nobody knows."""
    return [True] * count if finished is None else [bool(flag) for flag in finished]


def num_tokens(response_mask: Sequence[Any]) -> list[int]:
    """Number of sampled tokens of each response, from a mask ``[B, T]`` (a tensor, an array or lists)."""
    return [int(row.sum()) if hasattr(row, "sum") else sum(bool(entry) for entry in row) for row in response_mask]
