"""The clusters that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatlearn.runtime.base import Cluster
from chatlearn.runtime.local import LocalCluster
from chatlearn.runtime.seeding import preserved_globals

LOCAL = {
    "local": LocalCluster,
    "isolated": lambda: LocalCluster(isolate=True),
    "threads": lambda: LocalCluster(threads=2),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_cluster: runs over Ray too, where each replica is a process to start")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What one cluster in processes shows is shown over Ray; the rest says nothing new there."""
    if "cluster" in metafunc.fixturenames:
        everywhere = metafunc.definition.get_closest_marker("every_cluster") is not None
        metafunc.parametrize("cluster", [*LOCAL, *(["ray"] if everywhere else [])], indirect=True)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A started cluster; the test's own generators and thread count come back afterwards."""
    if request.param == "ray":
        made: Cluster = request.getfixturevalue("one_ray")()
    else:
        made = LOCAL[request.param]()
    with preserved_globals():
        made.start()
        yield made
        made.shutdown()
