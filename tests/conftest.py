"""For all tests: one torch thread, since sums differ between thread counts, and property tests without a deadline,
since the first call of a torch function takes longer than the rest. And one Ray, for those that ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from chatlearn.runtime.ray.cluster import RayCluster

torch.set_num_threads(1)
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a CUDA device are left out where there is none."""
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def one_ray() -> Iterator[Callable[[], RayCluster]]:
    """Makes clusters on one Ray, which is there for as long as this process tests."""
    from chatlearn.runtime.placement import Resources
    from chatlearn.runtime.ray.cluster import RayCluster

    keeper = RayCluster()
    keeper.start(Resources(cpus=8))
    yield lambda: RayCluster(hang_timeout=120)
    keeper.shutdown()
