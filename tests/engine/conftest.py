"""Every engine test starts with an empty record, and its runs are quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import toys


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with toys.quick_runs():
        yield


@pytest.fixture(autouse=True)
def _empty_record() -> Iterator[None]:
    toys.EVENTS.clear()
    toys.INTERRUPT.clear()
    yield
    toys.INTERRUPT.clear()
