"""Samples shared out so that each part has about as many tokens."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from chatlearn.errors import DataError

_Part = tuple[int, list[int]]


def karmarkar_karp(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Parts with sums as equal as the largest differencing method finds (Karmarkar and Karp, 1982).

    Args:
        lengths: tokens of each sample.
        num_parts: how many parts.

    Returns:
        Indices of the samples of each part, every sample once. They ascend in a part; parts go by their first index,
        parts without any sample (where there are fewer samples than parts) come last.

    Raises:
        DataError: fewer than one part, or a negative length.
    """
    if num_parts < 1:
        raise DataError(f"karmarkar_karp(num_parts={num_parts}): at least one part is needed.")
    if lengths and min(lengths) < 0:
        raise DataError(f"karmarkar_karp: sample {min(range(len(lengths)), key=lengths.__getitem__)} is below 0 long.")
    # an entry is a partial solution: its parts, the largest sum first; where spreads are equal, the number decides
    empty: list[_Part] = [(0, []) for _ in range(num_parts - 1)]
    heap = [(-(length if empty else 0), index, [(length, [index]), *empty]) for index, length in enumerate(lengths)]
    heapq.heapify(heap)
    while len(heap) > 1:
        _, number, first = heapq.heappop(heap)
        _, _, second = heapq.heappop(heap)
        combined = [_joined(a, b) for a, b in zip(first, reversed(second), strict=True)]
        combined.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (combined[-1][0] - combined[0][0], number, combined))
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    if heap:
        parts = [sorted(indices) for _, indices in heap[0][2]]
    return sorted(parts, key=lambda part: part[0] if part else len(lengths))


def longest_first(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Parts with about equal sums: the longest sample first, each to the part that has least (Graham 1969).

    Less even than :func:`karmarkar_karp` where a part has few samples, and a hundred times faster where there are many
    parts.

    Args:
        lengths: tokens of each sample.
        num_parts: how many parts, at least one.

    Returns:
        Indices of the samples of each part, every sample once, the longest first.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    heap = [(0, part) for part in range(num_parts)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        total, part = heap[0]
        parts[part].append(index)
        heapq.heapreplace(heap, (total + lengths[index], part))
    return parts


def _joined(a: _Part, b: _Part) -> _Part:
    return a[0] + b[0], a[1] + b[1]
