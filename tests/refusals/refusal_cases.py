"""The checks of refusals and failures that the tests here share."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys

from chatlearn import ChatLearnError, Engine


def refused(engine: Engine, kind: type[ChatLearnError], *words: str, folder: Path) -> None:
    """``learn()`` and ``check()`` say the same, and nothing has started: no module, no folder."""
    for attempt in (engine.check, engine.learn):
        with pytest.raises(kind) as caught:
            attempt()
        for word in words:
            assert word in str(caught.value)
    assert toys.EVENTS == []
    assert [path.name for path in folder.iterdir() if path.suffix != ".yaml"] == []


def fails(engine: Engine, kind: type[ChatLearnError], *words: str) -> ChatLearnError:
    with pytest.raises(kind) as caught:
        engine.learn()
    for word in words:
        assert word in str(caught.value)
    return caught.value
