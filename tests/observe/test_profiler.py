"""torch's profiler around chosen episodes. GPU kernels are not covered."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatlearn.errors import ConfigError
from chatlearn.observe.profiler import episode_profiler


def _operators(path: Path) -> list[tuple[str, int]]:
    """(operator, thread) of each matrix product."""
    events = json.loads(path.read_text())["traceEvents"]
    return [(event["name"], event["tid"]) for event in events if event.get("name") == "aten::mm"]


def test_chosen_episodes_only(tmp_path: Path) -> None:
    profile = episode_profiler([2, 4], tmp_path / "profile")
    x = torch.ones(3, 3)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the thread is older than any profiler
        for episode in range(1, 5):
            with profile(episode):
                for _ in range(episode):
                    x @ x
                pool.submit(torch.mm, x, x).result()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [
        "episode-000002.json",
        "episode-000004.json",
    ]
    for episode in (2, 4):
        operators = _operators(tmp_path / "profile" / f"episode-{episode:06d}.json")
        assert len(operators) == episode + 1
        assert len({thread for _, thread in operators}) == 2  # steps on other threads are recorded too


def test_nothing_chosen_nothing_written(tmp_path: Path) -> None:
    profile = episode_profiler([], tmp_path / "profile")
    with profile(1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_episode_that_fails_is_written(tmp_path: Path) -> None:
    profile = episode_profiler({1}, tmp_path)
    with pytest.raises(RuntimeError, match="shapes"), profile(1):
        torch.mm(torch.ones(2, 2), torch.ones(2, 2)) @ torch.ones(3, 3)
    assert len(_operators(tmp_path / "episode-000001.json")) >= 1


def test_episodes_are_counted_from_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no episode 0"):
        episode_profiler([3, 0], tmp_path)
