"""``chatlearn replay``."""

from __future__ import annotations

import argparse
from pathlib import Path

from chatlearn.cli.command import OUT, Option


def replay(what: str, options: argparse.Namespace, rest: list[str]) -> int:
    """``chatlearn replay``."""
    from chatlearn.cli.programs import run_again
    from chatlearn.engine.recompute_command import replay_command

    return replay_command(Path(what), options.sample, rest, options.out, run_again)


def _sample(text: str) -> int:
    """The value of ``--sample``."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected the sample_id of a line in samples/*.jsonl, got {text!r}")
    return int(text)


OPTIONS: list[Option] = [
    (("--sample",), {"metavar": "ID", "type": _sample, "required": True, "help": "sample_id, as in samples/*.jsonl"}),
    OUT,
]
"""Options of ``chatlearn replay``."""
