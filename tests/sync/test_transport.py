"""Weights inside of one process: every tensor arrives, cast where dtypes differ; damage is noticed before anything is
written. Not covered: ways between processes (test_carrier.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash

from chatlearn import BaseModule, SyncError
from chatlearn.modules.base import describe
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.local import LocalCluster
from chatlearn.sync.plan import make_plan
from chatlearn.sync.sync import ParameterSync
from chatlearn.sync.transport import checksum, describe_weights, read_weights, write_weights


class Net(torch.nn.Module):
    """All kinds of weights: a matrix, a scalar, persistent and other buffers, a tied pair."""

    def __init__(self, value: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).add(value).to(dtype))
        self.scalar = torch.nn.Parameter(torch.tensor(value, dtype=dtype))
        self.tied = self.matrix
        self.register_buffer("steps", torch.tensor([int(value)]))
        self.register_buffer("scratch", torch.tensor([value]), persistent=False)


def _side(value: float, dtype: torch.dtype = torch.float32) -> Any:
    return SimpleNamespace(name="rollout", model=Net(value, dtype))


def _transferred(source: Any, destination: Any) -> int:
    plan = make_plan("trained", {0: describe_weights(source)}, "rollout", {0: describe_weights(destination)})
    transfers = list(plan.transfers)
    return write_weights(destination, transfers, read_weights(source, transfers, 7))


def test_parameters_and_persistent_buffers_arrive() -> None:
    source, destination = _side(10.0), _side(0.0)
    assert _transferred(source, destination) == 7
    assert destination.model.matrix.tolist() == [[10, 11, 12], [13, 14, 15]]
    assert destination.model.scalar.item() == 10
    assert destination.model.steps.item() == 10
    assert destination.model.scratch.item() == 0  # not persistent: not part of the weights
    source.model.matrix.data.fill_(-1)
    assert destination.model.matrix[0, 0].item() == 10  # a copy, not an alias


def test_a_cast_where_dtypes_differ() -> None:
    source, destination = _side(1 / 3), _side(0.0, torch.bfloat16)
    _transferred(source, destination)
    assert destination.model.scalar.dtype == torch.bfloat16
    # 1/3 in bfloat16: 8 bits of significand, 0b1.0101011 x 2^-2
    assert destination.model.scalar.item() == 0.333984375
    assert describe_weights(destination)["scalar"].dtype == "torch.bfloat16"


@pytest.mark.parametrize("damage", ["a bit of a tensor", "the order", "a tensor less"])
def test_damage_is_noticed_and_nothing_written(damage: str) -> None:
    source, destination = _side(10.0), _side(0.0)
    plan = make_plan("t", {0: describe_weights(source)}, "r", {0: describe_weights(destination)})
    transfers = list(plan.transfers)
    published = read_weights(source, transfers, 3)
    tensors = [tensor.clone() for tensor in published.tensors]
    if damage == "a bit of a tensor":
        tensors[-1].view(torch.uint8)[0] ^= 1
    elif damage == "the order":
        tensors[0], tensors[1] = tensors[1], tensors[0]
    else:
        tensors.pop()
    before = {name: tensor.clone() for name, tensor in destination.model.state_dict().items()}
    words = {
        "a bit of a tensor": r"rollout: steps of version 3 arrived damaged \(checksum [0-9a-f]{16}, sent .{16}\)",
        "the order": "rollout: matrix of version 3 arrived damaged",
        "a tensor less": "rollout: 3 tensors of version 3 arrived where 4 were planned",
    }
    with pytest.raises(SyncError, match=rf"{words[damage]}.*unchanged"):
        write_weights(destination, transfers, dataclasses.replace(published, tensors=tensors))
    for name, tensor in destination.model.state_dict().items():
        assert tensor.equal(before[name])


def test_the_checksum_is_xxh3_of_the_bytes() -> None:
    tensors = [torch.arange(6, dtype=torch.int16).reshape(2, 3).T, torch.tensor(True), torch.ones(2).bfloat16()]
    raw = b"".join(
        [
            bytes([0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5, 0]),  # the transposed matrix row by row, little-endian
            bytes([1]),
            bytes([0x80, 0x3F, 0x80, 0x3F]),  # 1.0 is 0x3F80
        ]
    )
    assert checksum(tensors) == xxhash.xxh3_64_intdigest(raw)
    assert (
        checksum([torch.empty(0, 3)]) == checksum([]) == 0x2D06800538D394C2
    )  # of nothing, in xxHash's own test vectors


def test_a_checksum_leaves_memory_that_can_be_released() -> None:
    """As an offload does; ``Tensor.numpy()`` would prevent it."""
    tensor = torch.arange(4.0)
    checksum([tensor])
    assert tensor.untyped_storage().resizable()


class Weighted(BaseModule):
    """A module with a model of the given size, or with none."""

    def __init__(self, name: str, size: int | None, value: float = 0.0) -> None:
        super().__init__(name)
        self.size, self.value = size, value

    def setup(self) -> None:
        if self.size is not None:
            self.model = torch.nn.Linear(self.size, 1)
            torch.nn.init.constant_(self.model.weight, self.value)

    def forward_step(self, data: Any) -> Any:
        return data


@pytest.fixture(params=[False, True], ids=["by reference", "through bytes"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    cluster = LocalCluster(isolate=request.param)
    yield cluster
    cluster.shutdown()


def _spawned(cluster: LocalCluster, module: Weighted, replicas: int = 1) -> list[Any]:
    settings = ReplicaSettings(0, {}, None, None)
    handles = [cluster.spawn(describe(module), i, settings) for i in range(replicas)]
    for handle in handles:
        cluster.call(handle, "setup")
    return handles


def _weight(module: Any) -> list[float]:
    return module.model.weight.flatten().tolist()


def test_every_replica_gets_the_weights(cluster: LocalCluster) -> None:
    (source,) = _spawned(cluster, Weighted("trained", 2, 5.0))
    replicas = _spawned(cluster, Weighted("rollout", 2), 3)
    sync = ParameterSync(cluster, source, replicas)
    assert sync.note is None
    sync.sync(1)
    assert [cluster.get(cluster.call(handle, "apply", _weight)) for handle in replicas] == [[5.0, 5.0]] * 3


def test_a_pair_without_parameters_is_a_note(cluster: LocalCluster) -> None:
    (source,), (destination,) = (_spawned(cluster, Weighted(name, None)) for name in ("trained", "rollout"))
    sync = ParameterSync(cluster, source, [destination])
    assert sync.note is not None
    assert "trained -> rollout" in sync.note
    sync.sync(1)


@pytest.mark.parametrize(("ours", "theirs", "empty"), [(None, 2, "trained"), (2, None, "rollout")])
def test_parameters_on_one_side_only(cluster: LocalCluster, ours: Any, theirs: Any, empty: str) -> None:
    (source,) = _spawned(cluster, Weighted("trained", ours))
    (destination,) = _spawned(cluster, Weighted("rollout", theirs))
    words = rf"trained -> rollout: {empty} has no parameters.*has 2 tensors.*{empty}\.setup"
    with pytest.raises(SyncError, match=words):
        ParameterSync(cluster, source, [destination])


def test_unequal_shapes(cluster: LocalCluster) -> None:
    (source,), (destination,) = (_spawned(cluster, Weighted(n, s)) for n, s in (("trained", 2), ("rollout", 3)))
    with pytest.raises(SyncError, match=r"weight is \[1, 2\] in trained and \[1, 3\] in rollout"):
        ParameterSync(cluster, source, [destination])
