"""What a command is, and the options that several have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Option = tuple[tuple[str, ...], dict[str, Any]]
"""Flags and keywords of an option, for argparse."""

PROGRAM = "RECIPE|SCRIPT.py"
"""First word of the commands that are about a program."""

RUN = "RUN_FOLDER"
"""First word of the commands that are about a run."""

OUT: Option = (("-o", "--out"), {"metavar": "FILE", "type": Path, "help": "write to this file"})


@dataclass(frozen=True)
class Command:
    """One command of the console script.

    Attributes:
        help: What it does.
        run: Gets the first word, the options and all words that are no options; may return an exit code.
        what: What the first word is; empty if there is none.
        optional: Whether the first word may be left out.
        options: Flags and keywords of its options, for argparse.
        takes_settings: Whether it takes further words: those of the configuration and of the program.
    """

    help: str
    run: Callable[[str, argparse.Namespace, list[str]], int | None]
    what: str = ""
    optional: bool = False
    options: Sequence[Option] = ()
    takes_settings: bool = True
