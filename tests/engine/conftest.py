"""Every engine test starts with an empty record, and draws no pictures: that takes longer than the runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import toys

import chatlearn.engine.run


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatlearn.engine.run, "draw_learning_curve", lambda *args: None)
        yield


@pytest.fixture(autouse=True)
def _empty_record() -> Iterator[None]:
    toys.EVENTS.clear()
    toys.INTERRUPT.clear()
    yield
    toys.INTERRUPT.clear()
