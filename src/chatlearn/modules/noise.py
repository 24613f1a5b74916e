"""Counter-based noise: a number depends on its key alone, never on what was drawn before."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFFFFFFFFFF


def uniforms(seed: int, ids: Sequence[int], n: int) -> torch.Tensor:
    """``[len(ids), n]`` float32 numbers in the open interval (0, 1), one row per id.

    Row i depends on ``seed`` and ``ids[i]`` only. Two rounds of the SplitMix64 finaliser (Steele, Lea and Flood 2014,
    "Fast splittable pseudorandom number generators", figure 16): the first spreads seed and id to the state of
    a row's own generator, the second is that generator's output at counter j. The words of an id of more than 64 bits
    are folded into one first; up to 64 bits an id is its own word.
    """
    import numpy as np
    import torch

    rows = np.asarray([_word(index(i)) for i in ids], dtype=np.uint64).reshape(-1, 1)
    with np.errstate(over="ignore"):
        state = _mix(rows * np.uint64(_GOLDEN) + np.uint64(seed & _WORD))
        counters = (np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)).reshape(1, -1)
        bits = _mix(state + counters)
    # 23 bits and a half: never 0, never 1, and exact in float32
    return torch.as_tensor(
        ((bits >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23), device="cpu"
    )


def _word(number: int) -> int:
    """64 bits that depend on all bits of an integer of any size.

    Numbers that differ in their last word only stay different, and so do those that differ in the word above only.
    """
    high = number >> 64
    return number & _WORD if high in (0, -1) else (number & _WORD) ^ _mix_integer(_word(high) * _GOLDEN & _WORD)


def _mix_integer(z: int) -> int:
    """:func:`_mix` of a Python integer."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _WORD
    return z ^ (z >> 31)


def _mix(z: np.ndarray) -> np.ndarray:
    import numpy as np

    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
