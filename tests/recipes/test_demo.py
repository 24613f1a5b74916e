"""When a recipe's run counts as finished. That one that was killed right before is measured after all is tested with
the recipes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatlearn.config.schema import RuntimeConfig
from chatlearn.recipes.demo import claim_until_measured, reopened


def run_folder(parent: Path, **result: Any) -> Path:
    """A run with a checkpoint, and with this in its result."""
    run = parent / "run"
    checkpoint = run / "checkpoints" / "episode-000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run.json").write_text("{}")
    (run / "config.yaml").write_text("")
    (run / "result.json").write_text(json.dumps(result))
    return run


@pytest.mark.parametrize("by_path", [False, True])
def test_a_run_that_ended_without_its_figures_goes_on_from_its_last_checkpoint(tmp_path: Path, by_path: bool) -> None:
    run = run_folder(tmp_path, status="finished", episodes=4)
    runtime = RuntimeConfig(output_dir=str(tmp_path), exp_name="run", resume=str(run) if by_path else "auto")
    for _ in range(2):  # killed again at once, it is the same
        folder = claim_until_measured(runtime)
        assert not folder.finished
        assert folder.path == run
        assert folder.checkpoint == run / "checkpoints" / "episode-000004"
    assert json.loads((run / "result.json").read_text()) == {"status": "interrupted", "episodes": 4}


def test_a_run_with_its_figures_is_finished(tmp_path: Path) -> None:
    run = run_folder(tmp_path, status="finished", final_accuracy=0.5)
    before = (run / "result.json").read_text()
    folder = claim_until_measured(RuntimeConfig(output_dir=str(tmp_path), exp_name="run", resume="auto"))
    assert folder.finished
    assert (run / "result.json").read_text() == before


def test_a_new_run_is_not_touched(tmp_path: Path) -> None:
    assert not reopened(tmp_path / "new", "final_accuracy")
    assert not (tmp_path / "new").exists()
