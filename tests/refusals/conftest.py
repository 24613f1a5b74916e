"""Each test of refusals starts with a small configuration of its own and no recorded events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toys

import chatlearn

pytest.register_assert_rewrite("refusal_cases")


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path) -> Iterator[None]:
    toys.EVENTS.clear()
    chatlearn.init(toys.settings(tmp_path))
    with toys.quick_runs():
        yield
