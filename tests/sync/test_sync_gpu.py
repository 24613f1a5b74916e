"""Weights on a GPU: packed and written through page-locked buffers, with the values that a CPU gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sync_modules as beside
import torch

from chatlearn.sync.buckets import Pair
from chatlearn.sync.inlet import open_inlet, receive_weights, write_chunk
from chatlearn.sync.layout import make_layout
from chatlearn.sync.outlet import open_outlet, read_chunk, send_weights
from chatlearn.sync.plan import make_plan
from chatlearn.sync.transport import describe_view

pytestmark = pytest.mark.gpu


def _side(name: str, dtype: torch.dtype, device: str) -> Any:
    return SimpleNamespace(name=name, model=beside.Zoo(dtype).to(device))


@pytest.mark.parametrize(("ours", "theirs"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_far", [False, True], ids=["shared memory", "chunks"])
def test_weights_pass_through_host_memory(ours: str, theirs: str, dtype: torch.dtype, is_far: bool) -> None:
    source, replica = _side("trainer", torch.float32, ours), _side("policy", dtype, theirs)
    beside.fill(source, 1)
    held, wanted = describe_view(source).held, describe_view(replica).held
    plan = make_plan("trainer", {0: held}, "policy", {0: wanted})
    layout = make_layout(plan.transfers, held, wanted)
    pair, names = Pair("key", "trainer[0]", "policy", layout, False, False), ("trainer[0]", "policy")
    address = open_outlet(source, pair, not is_far)
    open_inlet(replica, pair)
    for version in (1, 2):
        beside.fill(source, version)
        if is_far:
            for number in range(len(beside.buckets(layout))):
                write_chunk(replica, names, read_chunk(source, names, version, version, number, number + 1))
        else:
            assert address is not None
            send_weights(source, names, version, version, 0)
            assert receive_weights(replica, names, address, version, version, True) == version
        expected = {name: value.to(theirs) for name, value in source.model.state_dict().items()}
        for name, value in replica.model.state_dict().items():
            assert torch.equal(value, expected[name].to(value.dtype)), name
