"""The demo gives the weights and metrics of one process on Ray, bit for bit. Full length: docs/clusters.md."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHORT = ["runtime.num_episode=3", "models.warm_start.args.num_steps=50"]


def demo(folder: Path, *overrides: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Metrics without times, and the SHA-256 of each file of the policy's weights."""
    words = [sys.executable, "-m", "chatlearn", "run", "ppo", f"runtime.output_dir={folder}", *SHORT, *overrides]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "ppo/policy").glob("*.safetensors")
    }
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows], weights


@pytest.mark.slow
def test_the_demo_gives_the_same_bits_on_ray(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("local", "ray")]
    for folder in folders:
        folder.mkdir()
    rows, weights = demo(folders[0])
    assert len(rows) >= 3
    assert weights
    assert demo(folders[1], "runtime_env.backend=ray", "models.policy.num_replica=3") == (rows, weights)
