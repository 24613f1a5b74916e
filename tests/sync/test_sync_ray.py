"""Weights between actors: the same values as between plain processes, and a sync that outlives its replicas.

All actors are on one machine; where another one is meant, the cluster only says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sync_modules as beside
from sync_modules import Keeper

from chatlearn.errors import SyncError
from chatlearn.modules.base import BaseModule, describe
from chatlearn.runtime.base import Handle, Location
from chatlearn.runtime.calls import ReplicaSettings
from chatlearn.runtime.placement import Resources
from chatlearn.runtime.ray.cluster import RayCluster
from chatlearn.sync.sync import ParameterSync

SHARING = SimpleNamespace(share_weights=True)


class Scattered:
    """A cluster over Ray that believes some replicas to be on other machines."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.elsewhere: set[Handle] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cluster, name)

    def location(self, handle: Handle) -> Location:
        found = self.cluster.location(handle)
        return Location("another", found.process) if handle in self.elsewhere else found

    def added(self, module: BaseModule, replica: int = 0, model: Any = None, elsewhere: bool = False) -> Handle:
        settings = ReplicaSettings(0, {}, model, None, replaceable=module.name == "policy")
        handle = self.cluster.spawn(describe(module), replica, settings)
        self.cluster.get(self.cluster.call(handle, "setup"))
        if elsewhere:
            self.elsewhere.add(handle)
        return handle

    def apply(self, handle: Handle, function: Any, *args: Any) -> Any:
        return self.cluster.get(self.cluster.call(handle, "apply", function, *args))


@pytest.fixture(scope="module")
def keeper() -> Iterator[None]:
    """Ray, for as long as this file runs."""
    keeper = RayCluster()
    keeper.start(Resources(cpus=8))
    yield
    keeper.shutdown()


@pytest.fixture
def cluster(keeper: None) -> Iterator[Scattered]:
    cluster = RayCluster(hang_timeout=120)
    cluster.start()
    yield Scattered(cluster)
    cluster.shutdown()


@pytest.mark.parametrize("model", [None, SHARING], ids=["copied", "shared"])
def test_actors_get_the_weights_of_each_version(cluster: Scattered, model: Any) -> None:
    """One replica is near, two are far, and what a far one lost its place to gets it all again."""
    source = cluster.added(Keeper("trainer"))
    replicas = [cluster.added(Keeper("policy"), i, model, elsewhere=i > 0) for i in range(3)]
    sync = ParameterSync(cluster, source, replicas)
    for version in (1, 2):
        cluster.apply(source, beside.fill, version)
        sync.sync(version)
        expected = beside.filled(version)
        assert [cluster.apply(replica, beside.values) == expected for replica in replicas] == [True] * 3
    cluster.apply(source, beside.fill, 3)
    for replica in replicas[:2]:
        cluster.kill(replica)
        cluster.added(Keeper("policy"), replica.replica, model)
        sync.restore(replica)
        assert cluster.apply(replica, beside.values) == beside.filled(2)


def test_damage_between_actors_names_the_tensor(cluster: Scattered) -> None:
    source, replica = cluster.added(Keeper("trainer")), cluster.added(Keeper("policy"), elsewhere=True)
    sync = ParameterSync(cluster, source, [replica])
    cluster.apply(source, beside.damage_chunks, "wide")
    with pytest.raises(SyncError, match=r"trainer\[0\] -> policy\[0\], version 1: wide arrived damaged"):
        sync.sync(1)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["shared memory", "chunks"])
def test_a_sync_goes_on_after_a_replica_was_killed_in_it(cluster: Scattered, elsewhere: bool) -> None:
    source = cluster.added(Keeper("trainer"))
    replicas = [cluster.added(Keeper("policy"), i, elsewhere=elsewhere) for i in range(2)]
    sync = ParameterSync(cluster, source, replicas)
    lost: list[Handle] = []

    def replace(handle: Handle, error: Exception) -> None:
        lost.append(handle)
        cluster.added(Keeper("policy"), handle.replica)
        sync.restore(handle)

    cluster.cluster.on_loss = replace
    for version in (1, 2):
        cluster.apply(source, beside.fill, version)
        if version == 2:
            cluster.apply(replicas[1], beside.die_on_arrival, 3)
        sync.sync(version)
        expected = beside.filled(version)
        assert [cluster.apply(replica, beside.values) == expected for replica in replicas] == [True, True]
    assert lost == [replicas[1]]
