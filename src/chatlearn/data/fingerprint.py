"""What tells one data set from another: a checksum of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from chatlearn.errors import ChatLearnError
from chatlearn.guards import is_instance, is_mapping, is_sequence

MOST = 100_000
"""Samples that are read; of larger data sets so many, evenly spread."""

_UNREADABLE = (LookupError, OSError, ValueError, TypeError, AttributeError, RuntimeError, ChatLearnError)


def fingerprint(prompts: Sequence[Any]) -> str:
    """The number of samples of a data set, and a checksum of them, such as ``1000:9f2c61d0b8a4e377``.

    Up to :data:`MOST` samples are read. Of objects that are neither numbers, texts, arrays, tensors nor made of these
    only the class counts; a sample that can't be read counts as such.
    """
    hasher, length = xxhash.xxh3_64(), len(prompts)
    for number in range(min(length, MOST)):
        try:
            sample = prompts[number * length // min(length, MOST)]
        except _UNREADABLE as error:  # whoever trains on it says what is wrong
            sample = type(error).__name__
        _feed(hasher, sample)
    return f"{length}:{hasher.hexdigest()}"


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        hasher.update(b"s%d:" % len(text) + text)
    elif is_mapping(value):
        hasher.update(b"m%d:" % len(value))
        for key, part in value.items():
            _feed(hasher, key)
            _feed(hasher, part)
    elif is_sequence(value):
        hasher.update(b"l%d:" % len(value))
        for part in value:
            _feed(hasher, part)
    elif is_instance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        hasher.update(f"a{value.dtype.str}{value.shape}:".encode() + value.tobytes())
    elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
        host = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        hasher.update(f"t{host.dtype}{tuple(host.shape)}:".encode())
        hasher.update(host.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif is_instance(value, np.generic):
        _feed(hasher, value.item())
    elif value is None or isinstance(value, (bool, int, float, complex, bytes)):
        text = repr(value).encode()
        hasher.update(b"v%d:" % len(text) + text)
    else:
        hasher.update(f"o{type(value).__module__}.{type(value).__qualname__}:".encode())
