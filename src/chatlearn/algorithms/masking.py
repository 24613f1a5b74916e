"""Statistics over the valid entries of a tensor.

A mask is nonzero (bool, int or float) where an entry is valid. Whatever stands elsewhere, NaN and infinity
included, is replaced *before* any arithmetic, so that it reaches neither a result nor a gradient (``0 * NaN``
is NaN in a backward pass too).

Half precision and integer inputs are computed and returned in float32, float32 and float64 as they are.
Nothing here waits for the device.

Shape legend: ``B`` samples, ``T`` tokens. The functions here take any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITEN_EPS = 1e-8
"""Added to the variance before the square root in :func:`masked_whiten`."""


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the valid entries; 0 where none is valid.

    Args:
        x: any shape.
        mask: same shape; nonzero where valid.
        dim: dimension to average over; ``None`` averages over all entries.

    Returns:
        0-d tensor, or ``x``'s shape without ``dim``.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(x=x, mask=mask)
    valid = mask.bool()
    total = torch.where(valid, as_float(x), 0).sum(dim)
    return total / valid.sum(dim).clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, *, ddof: int = 1) -> Tensor:
    """Variance of all valid entries: squared distances from their mean, summed, over ``count - ddof``.

    With fewer than ``ddof + 1`` valid entries the variance is 0 (torch and numpy say NaN there): one number
    does not spread.

    Args:
        x: any shape.
        mask: same shape; nonzero where valid.
        ddof: 1 for the sample variance, 0 for the variance of the population.

    Returns:
        0-d tensor.

    Raises:
        ValueError: the shapes differ, or ``ddof`` is neither 0 nor 1.
    """
    check_same_shape(x=x, mask=mask)
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof!r}")
    valid = mask.bool()
    _, _, var = _moments(torch.where(valid, as_float(x), 0), valid, valid.sum(), ddof)
    return var


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale the valid entries to unit variance: ``(x - mean) / sqrt(var + 1e-8)``, over all of them at once.

    Fewer than two valid entries stay as they are. Libraries differ in the variance (population or sample) and
    in where the small constant goes (under the root or beside it); here it is the sample variance, with the
    constant under the root.

    Args:
        x: any shape.
        mask: same shape; nonzero where valid.
        shift_mean: ``False`` adds the mean again after scaling, so that only the spread changes.

    Returns:
        ``x``'s shape; 0 where not valid.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(x=x, mask=mask)
    valid = mask.bool()
    clean = torch.where(valid, as_float(x), 0)
    count = valid.sum()
    mean, centered, var = _moments(clean, valid, count, ddof=1)
    whitened = centered * torch.rsqrt(var + WHITEN_EPS)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(valid & (count > 1), whitened, clean)


def _moments(clean: Tensor, valid: Tensor, count: Tensor, ddof: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, distances from it (0 where not valid) and variance; ``clean`` is finite where not valid.

    Two passes: the textbook ``E[x^2] - E[x]^2`` loses all digits in float32 when the mean is large.
    """
    mean = clean.sum() / count.clamp(min=1)
    centered = torch.where(valid, clean - mean, 0)
    # One entry is its own mean, so its distance is exactly 0 and the clamped divisor gives the variance 0.
    return mean, centered, centered.square().sum() / (count - ddof).clamp(min=1)


def as_float(x: Tensor) -> Tensor:
    """``x`` itself in float32 or float64, else a float32 copy."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a ``ValueError`` that names the first two of the given tensors whose shapes differ.

    Nothing broadcasts in these functions: ``[B]`` against ``[B, T]`` would pass unseen where B equals T.
    """
    (first, expected), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)} but {first} has shape {list(expected.shape)}; "
                "they must be equal"
            )
