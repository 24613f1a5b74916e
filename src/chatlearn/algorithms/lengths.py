"""Rewards that depend on nothing but the length of a response."""

from __future__ import annotations

import torch
from torch import Tensor

from chatlearn.algorithms.masking import as_float


def overlong_penalty(lengths_B: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """Soft overlong punishment of DAPO: Yu et al. 2025, arXiv:2503.14476, eq. 13.

    ::

        0                                            length <= max_length - buffer
        (max_length - buffer - length) / buffer      up to max_length
        -1                                           above

    It is *added* to the reward. The paper has ``max_length`` 20,480 (also the limit of generation, so that a
    response that was cut off gets -1) and ``buffer`` 4,096.

    Implementations differ in the scale only: verl multiplies by a ``penalty_factor``, which a caller can do.

    Args:
        lengths_B: number of sampled tokens of each response; any shape, integers or floats.
        max_length: length from which on the penalty is whole; in tokens.
        buffer: length of the slope before it; in tokens, in 1 .. ``max_length``.

    Returns:
        Same shape, between -1 and 0; float32, or float64 if the lengths are.

    Raises:
        ValueError: ``buffer`` does not lie in 1 .. ``max_length``.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer must lie in 1 .. max_length, got buffer {buffer!r} and max_length {max_length!r}")
    return torch.clamp((max_length - buffer - as_float(lengths_B)) / buffer, min=-1.0, max=0.0)
