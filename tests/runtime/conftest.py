"""The clusters that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatlearn.runtime.base import Cluster
from chatlearn.runtime.local import LocalCluster
from chatlearn.runtime.seeding import preserved_globals

CLUSTERS = {
    "local": LocalCluster,
    "isolated": lambda: LocalCluster(isolate=True),
    "threads": lambda: LocalCluster(threads=2),
}


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A started cluster; the test's own generators and thread count come back afterwards."""
    cluster = CLUSTERS[request.param]()
    with preserved_globals():
        cluster.start()
        yield cluster
        cluster.shutdown()
