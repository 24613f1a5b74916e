"""A sink that fails costs a run a warning, never its end; one that can't be made is told before the first episode."""

from __future__ import annotations

import bdb
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toys

import chatlearn
from chatlearn.engine.engine import Interrupted
from chatlearn.errors import ConfigError
from chatlearn.observe.sinks import GuardedSink, SinkContext, open_sinks
from chatlearn.observe.sinks.jsonl import JsonlSink

CALLS: list[Any] = []


class Sound:
    note = ""

    def __init__(self, context: SinkContext) -> None: ...

    def write(self, episode: int, row: Any) -> None:
        CALLS.append((type(self).__name__, episode))

    def close(self, status: str = "finished") -> None:
        CALLS.append((type(self).__name__, status))


class FailsToWrite(Sound):
    def write(self, episode: int, row: Any) -> None:
        super().write(episode, row)
        raise ConnectionError("the line is down")


class FailsToClose(Sound):
    def close(self, status: str = "finished") -> None:
        super().close(status)
        raise ConnectionError("the line is down")


class FailsInBoth(FailsToWrite, FailsToClose):
    pass


class FailsToBegin(Sound):
    def __init__(self, context: SinkContext) -> None:
        raise ConnectionError("no server")


class Untitled(FailsToClose):
    note = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    CALLS.clear()
    toys.EVENTS.clear()
    toys.INTERRUPT.clear()
    with toys.quick_runs():
        yield
    toys.INTERRUPT.clear()


def _init(folder: Path, *sinks: str) -> None:
    chatlearn.init(toys.settings(folder, sinks=[f"{__name__}:{name}" for name in sinks]))


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "toy" / "result.json").read_text())


@pytest.mark.parametrize(
    ("name", "method"), [("FailsToWrite", "write"), ("FailsToClose", "close"), ("FailsInBoth", "write")]
)
def test_a_run_goes_on_and_ends_properly_without_a_sink(name: str, method: str, tmp_path: Path) -> None:
    _init(tmp_path, name, "Sound")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        toys.make_engine().learn()
    (text,) = [str(warning.message) for warning in caught if "sink" in str(warning.message)]
    assert text.startswith(f"The sink {__name__}:{name}: {method} raises ConnectionError at {__file__}:")
    assert "the line is down. The run goes on" in text
    assert (_result(tmp_path)["status"], _result(tmp_path)["episodes"]) == ("finished", 2)
    assert [row["episode"] for row in toys.rows_of(tmp_path / "toy")] == [1, 2]
    # later rows are still offered, and the sink behind it misses nothing
    expected = [(each, what) for what in (1, 2, "finished") for each in (name, "Sound")]
    assert expected == CALLS


def test_an_interrupted_run_says_so_although_a_sink_can_not_be_closed(tmp_path: Path) -> None:
    _init(tmp_path, "FailsToClose", "Sound")
    toys.INTERRUPT["learner"] = 4
    with pytest.warns(UserWarning, match="FailsToClose: close raises ConnectionError"), pytest.raises(Interrupted):
        toys.make_engine().learn()
    assert _result(tmp_path)["status"] == "interrupted"
    assert CALLS[-2:] == [("FailsToClose", "interrupted"), ("Sound", "interrupted")]


def test_a_sink_that_can_not_be_made_is_named_before_the_first_episode(tmp_path: Path) -> None:
    _init(tmp_path, "Sound", "FailsToBegin")
    with pytest.raises(ConfigError) as caught:
        toys.make_engine().learn()
    text = str(caught.value)
    assert text.startswith(f"The sink '{__name__}:FailsToBegin': its constructor raises ConnectionError at {__file__}:")
    assert text.endswith("no server. Mend it, or take the sink off runtime.sinks.")
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert toys.EVENTS == []
    assert CALLS == [("Sound", "failed")]


@pytest.mark.parametrize(("last", "words"), [("FailsToBegin", "FailsToBegin"), ("Untitled", "no text `note`")])
def test_the_error_that_counts_is_the_first(last: str, words: str, tmp_path: Path) -> None:
    """Closing what was open before may fail too."""
    names = [f"{__name__}:{name}" for name in ("FailsToClose", last)]
    with pytest.warns(UserWarning, match="close raises"), pytest.raises(ConfigError, match=words):
        open_sinks(tmp_path, 1, names)
    assert ("FailsToClose", "failed") in CALLS


def test_a_run_that_can_not_keep_its_own_record_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: JsonlSink, episode: int, row: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonlSink, "write", full)
    chatlearn.init(toys.settings(tmp_path, sinks=[]))
    with pytest.raises(OSError, match="No space left"):
        toys.make_engine().learn()
    assert _result(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, bdb.BdbQuit])
def test_who_asks_to_stop_is_heard_inside_of_a_sink(error: type[BaseException]) -> None:
    class Stopping(Sound):
        def __init__(self) -> None: ...

        def write(self, episode: int, row: Any) -> None:
            raise error

        def close(self, status: str = "finished") -> None:
            raise error

    guarded = GuardedSink(Stopping())
    with pytest.raises(error):
        guarded.write(1, {})
    with pytest.raises(error):
        guarded.close()
