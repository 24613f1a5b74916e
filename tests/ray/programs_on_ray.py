"""Programs as users start them, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_program(
    path: Path, *words: str, folder: Path, limit: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder; output and errors are one text each."""
    return subprocess.run(
        [sys.executable, str(path), *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=limit,
    )


def facts_of(path: Path, *words: str, folder: Path) -> Any:
    """The line of JSON that a program ends with."""
    done = run_program(path, *words, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
