"""Weights between real processes, by all routes: values, damage, ends of either side, replicas that are replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sync_modules as beside
from process_cluster import ProcessCluster
from sync_modules import Keeper, Partly

from chatlearn.errors import SyncError, WorkerError
from chatlearn.sync.inlet import receive_weights
from chatlearn.sync.sync import ParameterSync, synchronise

SHARING = SimpleNamespace(share_weights=True)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def cluster() -> Iterator[ProcessCluster]:
    cluster = ProcessCluster()
    yield cluster
    cluster.shutdown()


def _pair(
    cluster: ProcessCluster,
    nodes: str = "a",
    *,
    ours: str = "float32",
    theirs: str = "float32",
    model: Any = None,
    runtime: Any = None,
) -> tuple[ParameterSync, Any, list[Any]]:
    source = cluster.spawn(Keeper("trainer", ours), runtime=runtime)
    replicas = [cluster.spawn(Keeper("policy", theirs), i, node=node, model=model) for i, node in enumerate(nodes)]
    return ParameterSync(cluster, source, replicas), source, replicas


@pytest.mark.parametrize("nodes", ["a", "b", "aab"], ids=["one machine", "two machines", "three replicas"])
def test_every_replica_gets_the_weights_of_each_version(cluster: ProcessCluster, nodes: str) -> None:
    sync, source, replicas = _pair(cluster, nodes)
    for version in (1, 2, 3):
        cluster.apply(source, beside.fill, version)
        sync.sync(version)
        expected = beside.filled(version)
        assert [cluster.apply(replica, beside.values) == expected for replica in replicas] == [True] * len(nodes)
    assert cluster.apply(replicas[0], beside.numbers, "scratch") == [1.0]


@pytest.mark.parametrize("nodes", ["aa", "ba", "bb"])
@pytest.mark.parametrize("model", [None, SHARING], ids=["copied", "shared"])
def test_fixed_tensors_travel_once_and_are_restored_too(cluster: ProcessCluster, nodes: str, model: Any) -> None:
    """What the source does to them afterwards, which it may not, shows that they stay behind."""
    source = cluster.spawn(Partly("trainer"))
    replicas = [cluster.spawn(Partly("policy"), i, node=node, model=model) for i, node in enumerate(nodes)]
    sync = ParameterSync(cluster, source, replicas)
    for version in (1, 2, 3):
        cluster.apply(source, beside.fill, version)
        sync.sync(version)
    first, last = beside.filled(1), beside.filled(3)
    expected = {name: (first if name in ("large", "odd", "tied", "steps") else last)[name] for name in first}
    assert [cluster.apply(replica, beside.values) == expected for replica in replicas] == [True, True]
    cluster.apply(source, beside.fill, 4)
    for replica, node in ((replicas[0], "a"), (replicas[1], "b"), (replicas[0], "b"), (replicas[1], "a")):
        cluster.kill(replica)
        cluster.spawn(Partly("policy"), replica.replica, node=node, model=model)
        sync.restore(replica)
        assert cluster.apply(replica, beside.values) == expected
    sync.sync(4)
    for name in ("wide", "turned"):
        assert cluster.apply(replicas[0], beside.values)[name] == beside.filled(4)[name]


@pytest.mark.parametrize("nodes", ["a", "b"], ids=["one machine", "two machines"])
@pytest.mark.parametrize(("ours", "theirs"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("model", [None, SHARING], ids=["copied", "shared"])
def test_values_are_cast_where_dtypes_differ(
    cluster: ProcessCluster, nodes: str, ours: str, theirs: str, model: Any
) -> None:
    sync, source, (replica,) = _pair(cluster, nodes, ours=ours, theirs=theirs, model=model)
    cluster.apply(source, beside.fill, 5)
    sync.sync(1)
    assert cluster.apply(replica, beside.values) == beside.filled(5, ours, then=theirs)


def test_chunks_are_as_large_as_the_run_says(cluster: ProcessCluster) -> None:
    sync, source, (replica,) = _pair(cluster, "b", runtime=SimpleNamespace(coalesced_buffer_mb=1))
    layout = sync._carrier._pair.layout
    buckets = sync._carrier._buckets
    sizes = [
        buckets.all[stop - 1].stop - buckets.all[start].start for start, stop in buckets.chunks(layout.chunk_bytes)
    ]
    assert layout.chunk_bytes == 2**20
    assert max(sizes) <= 2**20
    assert len(sizes) >= 5  # for 5,056,191 bytes of weights
    cluster.apply(source, beside.fill, 5)
    sync.sync(1)
    assert cluster.apply(replica, beside.values) == beside.filled(5)


@pytest.mark.parametrize("name", ["large", "scalar", "turned", "steps"])
def test_a_damaged_byte_in_shared_memory_names_the_tensor(cluster: ProcessCluster, name: str) -> None:
    sync, source, _ = _pair(cluster)
    sync.sync(6)
    cluster.apply(source, beside.damage_memory, name)
    words = rf"trainer\[0\] -> policy\[0\], version 7: {name} arrived damaged \(checksum of its bytes \d+ to \d+\)"
    with pytest.raises(SyncError, match=words):
        sync.sync(7)


def test_a_damaged_byte_is_noticed_where_replicas_share(cluster: ProcessCluster) -> None:
    sync, source, _ = _pair(cluster, model=SHARING)
    sync.sync(6)
    cluster.apply(source, beside.damage_memory, "large")
    with pytest.raises(SyncError, match=r"version 7: large arrived damaged"):
        sync.sync(7)


def test_a_damaged_byte_between_machines_names_the_tensor(cluster: ProcessCluster) -> None:
    sync, source, _ = _pair(cluster, "b")
    cluster.apply(source, beside.damage_chunks, "wide")
    with pytest.raises(SyncError, match=r"trainer\[0\] -> policy\[0\], version 1: wide arrived damaged"):
        sync.sync(1)


@pytest.mark.parametrize("bucket", [0, 3])
def test_a_source_that_dies_is_named_by_everyone(cluster: ProcessCluster, bucket: int) -> None:
    sync, source, replicas = _pair(cluster, "aa")
    cluster.apply(source, beside.break_packing, "die", bucket)
    arrivals = sync.begin(4)
    with pytest.raises(WorkerError, match=r"trainer\[0\] died"):
        sync.settle(4, arrivals)
    words = r"trainer\[0\] -> policy\[1\], version 4: trainer\[0\] has ended while it sent.*must not be used"
    with pytest.raises(SyncError, match=words):
        cluster.get(arrivals[2][1])
    assert cluster.get(cluster.call(replicas[1], "ping")) == "policy[1]"


def test_a_source_that_fails_says_so_to_its_replicas(cluster: ProcessCluster) -> None:
    sync, source, _ = _pair(cluster)
    cluster.apply(source, beside.break_packing, "raise", 2)
    arrivals = sync.begin(4)
    with pytest.raises(SyncError, match=r"version 4: trainer\[0\] failed while it sent: ValueError: no luck"):
        cluster.get(arrivals[1][1])


@pytest.mark.parametrize("bucket", [0, 3])
def test_a_replica_that_dies_is_not_the_others_problem(cluster: ProcessCluster, bucket: int) -> None:
    sync, source, replicas = _pair(cluster, "aab")
    cluster.apply(source, beside.fill, 1)
    cluster.apply(replicas[0], beside.die_on_arrival, bucket)
    with pytest.raises(WorkerError, match=r"policy\[0\] died"):
        sync.sync(1)
    assert [cluster.apply(replica, beside.values) == beside.filled(1) for replica in replicas[1:]] == [True, True]
    cluster.apply(source, beside.fill, 2)
    new = cluster.spawn(Keeper("policy"), 0)
    sync.restore(new)
    assert cluster.apply(new, beside.values) == beside.filled(1)
    sync.sync(2)
    assert [cluster.apply(replica, beside.values) == beside.filled(2) for replica in replicas] == [True] * 3


@pytest.mark.parametrize("before", ["a", "b"])
@pytest.mark.parametrize("after", ["a", "b"])
def test_a_replaced_replica_gets_what_was_published_though_training_went_on(
    cluster: ProcessCluster, before: str, after: str
) -> None:
    """Wherever the replica was, and wherever the one in its place is."""
    sync, source, (replica,) = _pair(cluster, before)
    for version in (1, 2):
        cluster.apply(source, beside.fill, version)
        sync.sync(version)
    cluster.apply(source, beside.fill, 99)
    cluster.kill(replica)
    cluster.spawn(Keeper("policy"), 0, node=after)
    sync.restore(replica)
    assert cluster.apply(replica, beside.values) == beside.filled(2)
    sync.sync(3)
    assert cluster.apply(replica, beside.values) == beside.filled(99)


def test_a_replaced_replica_does_not_wait_for_a_train_step(cluster: ProcessCluster) -> None:
    sync, source, (replica,) = _pair(cluster)
    cluster.apply(source, beside.fill, 1)
    sync.sync(1)
    cluster.kill(replica)
    cluster.spawn(Keeper("policy"), 0)
    step = cluster.call(source, "apply", beside.hold_busy, 3600.0)
    sync.restore(replica)
    assert cluster.apply(replica, beside.values) == beside.filled(1)
    assert not cluster.replicas[step.replica.handle].pipe.poll()  # it still runs


def test_before_the_first_sync_there_is_nothing_to_restore(cluster: ProcessCluster) -> None:
    sync, source, (replica,) = _pair(cluster)
    cluster.apply(source, beside.fill, 1)
    cluster.kill(replica)
    sync.restore(cluster.spawn(Keeper("policy"), 0))
    assert cluster.apply(replica, beside.numbers, "odd") == [0.0]
    sync.sync(1)
    assert cluster.apply(replica, beside.values) == beside.filled(1)


def test_several_pairs_are_synced_together(cluster: ProcessCluster) -> None:
    """Two pairs whose members are sources and destinations at once."""
    first, second = (cluster.spawn(Keeper(name)) for name in ("first", "second"))
    policy = cluster.spawn(Keeper("policy"))
    syncs = [ParameterSync(cluster, first, [policy]), ParameterSync(cluster, policy, [second])]
    cluster.apply(first, beside.fill, 1)
    cluster.apply(policy, beside.fill, 2)
    synchronise(syncs, 1)
    assert cluster.apply(policy, beside.values) == beside.filled(1)
    assert cluster.apply(second, beside.values) == beside.filled(1)  # the calls of policy keep their order
    synchronise(syncs[::-1], 2)
    assert cluster.apply(second, beside.values) == beside.filled(1)


def test_a_later_run_takes_the_place_of_an_earlier_one(cluster: ProcessCluster) -> None:
    sync, source, replicas = _pair(cluster)
    sync.sync(1)
    again = ParameterSync(cluster, source, replicas)
    cluster.apply(source, beside.fill, 1)
    again.sync(1)
    assert cluster.apply(replicas[0], beside.values) == beside.filled(1)


def test_a_version_that_is_not_the_expected_one_is_an_error(cluster: ProcessCluster) -> None:
    sync, _, (replica,) = _pair(cluster)
    arrivals = sync.begin(1)
    with pytest.raises(SyncError, match=r"policy\[0\] holds weights of version 1 after the sync of version 2"):
        sync.settle(2, arrivals[1:])
    address, ticket = sync._carrier._address, sync._carrier._in_memory
    with pytest.raises(SyncError, match=r"policy\[0\], version 9: trainer\[0\] sends version 1"):
        cluster.apply(replica, receive_weights, ("trainer[0]", "policy"), address, ticket, 9, False)
    with pytest.raises(SyncError, match=r"failed while it sent: version 1 has taken its place"):
        cluster.apply(replica, receive_weights, ("trainer[0]", "policy"), address, ticket - 1, 0, False)


# -- shared memory as weights --


@on_linux
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replicas_hold_one_copy_together(cluster: ProcessCluster, dtype: str) -> None:
    sync, source, replicas = _pair(cluster, "aa", theirs=dtype, model=SHARING)
    for version in (1, 2):
        cluster.apply(source, beside.fill, version)
        sync.sync(version)
        expected = beside.filled(version, then=dtype)
        assert [cluster.apply(replica, beside.values) == expected for replica in replicas] == [True, True]
        own = cluster.apply(replicas[0], beside.is_own_memory)
        assert {name for name, is_own in own.items() if is_own} == {"turned"}  # lies in columns
    assert len(set().union(*(cluster.apply(handle, beside.inode) for handle in (source, *replicas)))) == 1
    assert [cluster.apply(replica, beside.private_kib) for replica in replicas] == [0, 0]


@on_linux
def test_without_share_weights_each_has_its_own(cluster: ProcessCluster) -> None:
    sync, _, (replica,) = _pair(cluster)
    sync.sync(1)
    assert all(cluster.apply(replica, beside.is_own_memory).values())


@on_linux
def test_what_a_replica_writes_to_shared_weights_reaches_nobody_and_is_gone_after_a_sync(
    cluster: ProcessCluster,
) -> None:
    sync, source, replicas = _pair(cluster, "aa", model=SHARING)
    cluster.apply(source, beside.fill, 1)
    sync.sync(1)
    cluster.apply(replicas[0], beside.scribble, 7.0)
    assert cluster.apply(replicas[0], beside.numbers, "large") == [7.0]
    assert cluster.apply(replicas[1], beside.values) == beside.filled(1)
    cluster.apply(source, beside.fill, 2)
    sync.sync(2)
    assert [cluster.apply(replica, beside.values) == beside.filled(2) for replica in replicas] == [True, True]
    assert cluster.apply(replicas[0], beside.private_kib) == 0


def test_shared_weights_outlive_their_source(cluster: ProcessCluster) -> None:
    sync, source, (replica,) = _pair(cluster, model=SHARING)
    cluster.apply(source, beside.fill, 1)
    sync.sync(1)
    cluster.kill(source)
    assert cluster.apply(replica, beside.values) == beside.filled(1)
    with pytest.raises(
        SyncError, match=r"trainer\[0\] -> policy\[0\], version 1: trainer\[0\] can't be reached any more"
    ):
        cluster.get(sync._carrier._received(replica, 1, everything=True))


def test_a_replica_that_shares_finishes_its_step_before_its_weights_change(cluster: ProcessCluster) -> None:
    sync, source, (replica,) = _pair(cluster, model=SHARING)
    cluster.apply(source, beside.fill, 1)
    sync.sync(1)
    cluster.apply(source, beside.fill, 2)
    step = cluster.call(replica, "apply", beside.values_after, 0.3)
    sync.sync(2)
    assert cluster.get(step) == beside.filled(1)


def test_a_replaced_replica_shares_again(cluster: ProcessCluster) -> None:
    sync, source, replicas = _pair(cluster, "aa", model=SHARING)
    cluster.apply(source, beside.fill, 1)
    sync.sync(1)
    cluster.apply(source, beside.fill, 2)
    cluster.kill(replicas[0])
    sync.restore(cluster.spawn(Keeper("policy"), 0, model=SHARING))
    assert [cluster.apply(replica, beside.values) == beside.filled(1) for replica in replicas] == [True, True]


@on_linux
def test_syncs_leave_no_files_open(cluster: ProcessCluster) -> None:
    sync, source, replicas = _pair(cluster, "ab")
    sync.sync(1)
    before = [cluster.apply(handle, beside.descriptors) for handle in (source, *replicas)]
    for version in (2, 3, 4):
        sync.sync(version)
    assert [cluster.apply(handle, beside.descriptors) for handle in (source, *replicas)] == before


# -- nothing is left behind --

_KILLED = """
import sys
import sync_modules as beside
from process_cluster import ProcessCluster
from test_carrier import SHARING, _pair

if __name__ == "__main__":
    cluster = ProcessCluster()
    sync, source, replicas = _pair(cluster, "aa", model=SHARING)
    sync.sync(1)
    print(*(replica.process.pid for replica in cluster.replicas.values()), flush=True)
    sys.stdin.read()
"""


@on_linux
def test_nothing_is_left_behind_after_kill_9(tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text(_KILLED)
    folders = [Path("/dev/shm"), Path(tempfile.mkdtemp(prefix="sync"))]  # the name of a socket must be short
    before = set(os.listdir("/dev/shm"))
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "TMPDIR": str(folders[1]), "PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    for pid in (*pids, process.pid):
        os.kill(pid, 9)
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 3
    assert set(os.listdir("/dev/shm")) <= before
    assert not [path for path in folders[1].rglob("*") if "chatlearn" in path.name]
