"""Cases that several tests of algorithms share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

NAN, INF = float("nan"), float("inf")


@st.composite
def batches(draw: st.DrawFn, num_fields: int, bound: float = 3) -> tuple[list[Tensor], Tensor]:
    """Float64 fields ``[B, T]`` with numbers at all places, and a bool mask."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)))
    size = shape[0] * shape[1]
    numbers = st.lists(st.floats(-bound, bound, width=32), min_size=size, max_size=size)
    fields = [torch.tensor(draw(numbers), dtype=torch.float64).view(shape) for _ in range(num_fields)]
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
    return fields, mask


def poison(x: Tensor, mask: Tensor) -> Tensor:
    junk = torch.tensor([NAN, INF, -INF], dtype=x.dtype).repeat(x.numel())[: x.numel()].view(x.shape)
    return torch.where(mask, x, junk)


def one_token(*numbers: float) -> list[Tensor]:
    return [torch.tensor([[x]], dtype=torch.float64) for x in numbers]
