"""A step that hangs in a run in one process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import toys

import chatlearn


class Hanging(toys.Policy):
    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        if iteration == 1:
            threading.Event().wait(0.5)
        return super().forward_step(data, iteration)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_step_is_told_and_the_run_goes_on(threads: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = toys.settings(tmp_path, num_episode=1, hang_timeout_seconds=0.2)
    chatlearn.init({**settings, "runtime_env": {"local_threads": threads}})
    toys.make_engine(Hanging).learn()
    output = capsys.readouterr().out
    assert output.count("note: policy[0].forward_step, episode 1, batch 1 has been running for 0 s") == 1
    assert f'  File "{__file__}"' in output
    assert "threading.Event().wait(0.5)" in output
    assert len(toys.rows_of(tmp_path / "toy")) == 1
