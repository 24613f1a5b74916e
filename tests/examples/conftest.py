"""Runs in this process are quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import toys


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with toys.quick_runs():
        yield
