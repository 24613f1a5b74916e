"""Values that lie in several pieces: which rows of them a call gets, and how these become one batch where it runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

from chatlearn.data.collate import merge, select
from chatlearn.data.padding import Padding
from chatlearn.guards import is_sequence
from chatlearn.modules.base import merge_batches
from chatlearn.runtime.calls import Rows
from chatlearn.types import Batch, num_rows


def whole(source: Any, num: int) -> tuple[Rows, ...]:
    """A source of :class:`Rows` with ``num`` rows as pieces that name their rows."""
    return tuple(source) if is_sequence(source) else (Rows((source,), range(num)),)


def taken(value: Sequence[Rows], rows: Sequence[int]) -> tuple[Rows, ...]:
    """Some rows of a value, in the given order.

    Every piece stays, if only with none of its rows: merged rows are as wide, and of the dtype, as if all had been
    merged first.

    Args:
        value: pieces that name their rows.
        rows: numbers of rows of the value, counted over its pieces.
    """
    ends = list(accumulate(len(_named(piece)) for piece in value))
    bounds = list(zip(value, pairwise([0, *ends]), strict=True))
    if isinstance(rows, range) and rows.step == 1:
        return tuple(
            Rows(piece.sources, _named(piece)[max(rows.start - start, 0) : max(min(rows.stop, end) - start, 0)])
            for piece, (start, end) in bounds
        )
    runs: list[Rows] = []
    for number, run in groupby(rows, key=lambda row: bisect_right(ends, row)):
        piece, (start, _) = bounds[number]
        runs.append(Rows(piece.sources, [_named(piece)[row - start] for row in run]))
    return tuple(runs) if len(value) == len(runs) == 1 else (*(Rows(piece.sources, range(0)) for piece in value), *runs)


def gathered(value: Sequence[Rows], padding: Mapping[str, Padding]) -> Batch:
    """The rows of all pieces as one batch; the batches themselves stand in the place of futures.

    Raises:
        DataError: as of :func:`chatlearn.data.collate.merge`.
    """
    return merge([selected(piece, padding) for piece in value], padding)


def selected(piece: Rows, padding: Mapping[str, Padding]) -> Batch:
    """The rows of one piece; what all of them are is not copied.

    Raises:
        DataError: as of :func:`gathered`.
    """
    return merge_batches([_rows_of(source, piece.rows, padding) for source in piece.sources])


def leaves(source: Any) -> Iterator[Any]:
    """The futures (or batches) that a source of :class:`Rows` is made of, each once."""
    found: dict[int, Any] = {}
    pending = [source]
    while pending:
        each = pending.pop()
        if is_sequence(each):
            pending += [part for piece in each for part in piece.sources]
        else:
            found[id(each)] = each
    return iter(found.values())


def _rows_of(source: Any, rows: Sequence[int] | None, padding: Mapping[str, Padding]) -> Batch:
    if is_sequence(source):
        return gathered(source if rows is None else taken(source, rows), padding)
    return source if rows is None or rows == range(num_rows(source)) else select(source, rows)


def _named(piece: Rows) -> Sequence[int]:
    assert piece.rows is not None
    return piece.rows
