"""The clusters that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from chatlearn.config.load import load_config
from chatlearn.runtime.base import CLUSTERS, Cluster, create_cluster
from chatlearn.runtime.local import LocalCluster
from chatlearn.runtime.seeding import preserved_globals


def _configured(backend: str) -> Cluster:
    return create_cluster(load_config({"runtime_env": {"backend": backend}}))


LOCAL: dict[str, Callable[[], Cluster]] = {
    "local": LocalCluster,
    "isolated": lambda: LocalCluster(isolate=True),
    "threads": lambda: LocalCluster(threads=2),
    **{name: partial(_configured, name) for name in CLUSTERS if name not in ("local", "ray")},
}
"""How to make each that runs everywhere; a new line of ``CLUSTERS`` is held to the contract at once."""


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
