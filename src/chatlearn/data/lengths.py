"""Lengths of samples, and the order of an episode by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatlearn.errors import DataError
from chatlearn.guards import is_mapping, is_sequence

LENGTH_KEYS = ("prompt_tokens", "tokens", "input_ids", "prompt", "query", "messages")
"""Keys whose value tells how long a sample is; the first that a sample has counts."""


def length_of(sample: Any) -> int:
    """How long a sample is: the number of its tokens where it has them, else of the characters of its text.

    Of a dict it is the value of the first of :data:`LENGTH_KEYS`, else the first value that has a length. Of a
    conversation all contents count.

    Raises:
        DataError: nothing in it has a length.
    """
    if not is_mapping(sample):
        return _size(sample, f"a sample of type {type(sample).__name__}")
    known = next((key for key in LENGTH_KEYS if sample.get(key) is not None), None)
    if known is not None:
        return _size(sample[known], f"{known!r}")
    for value in sample.values():
        if _is_sized(value):
            return _size(value, "")
    raise DataError(
        f"a sample with the keys {', '.join(map(str, sample))} has no length. Give it one of {', '.join(LENGTH_KEYS)}, "
        f"or leave `data_rerank` out."
    )


def reranked(lengths: Sequence[int], group_ids: Sequence[int]) -> list[int]:
    """The order of an episode's samples in which groups of similar length stand together, the longest first.

    Batches cut from neighbours need least padding. With the longest first, a batch that is too large for the memory
    fails at once, and replicas that share the batches end at about the same time. Samples of a group stay together, in
    their order; groups of equal length keep theirs.

    Args:
        lengths: of each sample; a group is as long as its longest.
        group_ids: of each sample.

    Returns:
        Places in ``lengths``, each once.
    """
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(group_ids):
        groups.setdefault(group, []).append(place)
    ordered = sorted(groups.values(), key=lambda places: -max(lengths[place] for place in places))
    return [place for places in ordered for place in places]


def _is_sized(value: Any) -> bool:
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0


def _size(value: Any, what: str) -> int:
    if not _is_sized(value):
        raise DataError(f"{what} has no length, so samples can't be put in the order of their lengths: {value!r}")
    shape = getattr(value, "shape", None)
    if shape is not None:
        return int(shape[-1])
    if is_sequence(value) and value and all(is_mapping(message) and "content" in message for message in value):
        return sum(len(message["content"] or "") for message in value)
    return len(value)
