"""Damaged and foreign checkpoints, and programs that have changed: named, with the newest one that works, nothing
overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import damage
import pytest
from kill_children import pool


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """What runs are forked from."""
    with pool(1) as processes:
        yield processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs."""
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def record(processes: ProcessPoolExecutor, folder: Path) -> dict[str, Any]:
    """Of the run that was left alone."""
    return processes.submit(damage.prepared, folder).result()


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damage_is_named_and_the_newest_checkpoint_that_works_goes_on_exactly(
    kind: str, processes: ProcessPoolExecutor, folder: Path, record: dict[str, Any]
) -> None:
    told = processes.submit(damage.damaged, kind, folder, record).result()
    assert told.problems == [], told.row
