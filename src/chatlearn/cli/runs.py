"""Commands about runs and what they have left behind."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chatlearn.cli.command import Option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chatlearn.export import Exported, Form
    from chatlearn.modules.base import BaseModule


def report(what: str, options: argparse.Namespace, _: list[str]) -> None:
    """``chatlearn report``."""
    from chatlearn.report import alarm_lines, write_report

    print(write_report(Path(what), options.out))
    for line in alarm_lines(Path(what)):
        print(line, file=sys.stderr)


def checkpoints(what: str, options: argparse.Namespace, _: list[str]) -> int:
    """``chatlearn checkpoints``."""
    from chatlearn.cli.checkpoints import checkpoints_command

    return checkpoints_command(what, options)


def _count(text: str) -> int:
    """The value of ``--keep`` and ``--remove``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


CHECKPOINTS: list[Option] = [
    (("--verify",), {"action": "store_true", "help": "read all files and compare their checksums"}),
    (
        ("--remove",),
        {
            "metavar": "EPISODE",
            "type": _count,
            "action": "append",
            "help": "remove the checkpoint of this episode; may be repeated. The only good one stays",
        },
    ),
    (
        ("--keep",),
        {"metavar": "N", "type": _count, "help": "remove all but the newest N, the best one and the latest one"},
    ),
    (("--clean",), {"action": "store_true", "help": "remove what killed writes have left behind"}),
]
"""Options of ``chatlearn checkpoints``."""


def export(what: str, options: argparse.Namespace, _: list[str]) -> None:
    """``chatlearn export``."""
    from chatlearn.checkpoint.store import CheckpointStore
    from chatlearn.cli.places import place_of
    from chatlearn.errors import CheckpointError
    from chatlearn.export import export_checkpoint

    place = place_of(what)
    checkpoint = place.only or CheckpointStore(place.folder).latest()
    if checkpoint is None:
        raise CheckpointError(f"{place.folder} holds no checkpoint yet, so there is nothing to export.")
    exported = export_checkpoint(
        checkpoint,
        options.out.absolute(),
        options.module,
        form=_form(options.forms or []),
        max_shard_bytes=options.max_shard_size,
        settings=options.set or (),
        program=None if options.program is None else _modules_of(options.program, checkpoint, options.set or ()),
    )
    for line in _lines(exported):
        print(line)


def _modules_of(program: str, checkpoint: Path, settings: Sequence[str]) -> Mapping[str, BaseModule]:
    """The modules of a program, which is run up to where it would start something."""
    from chatlearn.checkpoint.store import read_run_state
    from chatlearn.cli.programs import modules_of
    from chatlearn.errors import ConfigError
    from chatlearn.export.rebuild import config_of

    config = config_of(read_run_state(checkpoint)[1], checkpoint, settings)
    try:
        return modules_of(program, config)
    except ConfigError as error:
        text = f"{program} does not fit the configuration in {checkpoint / 'run.json'}. {error}"
        raise ConfigError(text) from error.__cause__


def _form(asked: list[Form]) -> Form | None:
    """What ``--merged`` and ``--adapter`` ask for."""
    from chatlearn.errors import ConfigError

    if len(set(asked)) > 1:
        raise ConfigError("--merged and --adapter are two forms of one folder: give one of them.")
    return asked[0] if asked else None


def _lines(exported: Exported) -> list[str]:
    """What was written, in words."""
    from chatlearn.cli.checkpoints import size

    weights = [name for name in exported.files if name.endswith(".safetensors")]
    form = {"merged": ", adapters merged into the model", "adapter": ", the adapter alone", None: ""}[exported.form]
    lines = [
        f"{exported.module} ({exported.kind}) of {exported.checkpoint}, after {exported.episode} episodes{form}",
        f"written to {exported.path}: {size(sum(exported.files.values()))}, weights in {', '.join(weights) or 'no'}",
    ]
    if exported.defaults:
        lines.append(
            f"note: made with the constructor's own {', '.join(exported.defaults)}; if the program gave others, give "
            f"it with --program."
        )
    if not exported.loads_in_transformers:
        lines.append(
            "note: this model has no save_pretrained, so the folder holds its tensors and nothing that transformers "
            "loads."
        )
    return lines


def _bytes(text: str) -> int:
    """The value of ``--max-shard-size``, in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    num = 0 if match is None else int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))
    if num < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB or 500MB, got {text!r}")
    return num


EXPORT: list[Option] = [
    (("--to",), {"choices": ["hf"], "required": True, "help": "format: a folder that transformers loads"}),
    (("-o", "--out"), {"metavar": "FOLDER", "type": Path, "required": True, "help": "write to this new folder"}),
    (
        ("--module",),
        {"metavar": "NAME", "help": "which module; left out, the first of runtime.export, or the only one that can"},
    ),
    (
        ("--merged",),
        {
            "dest": "forms",
            "action": "append_const",
            "const": "merged",
            "help": "of a model with adapters write the whole model that computes the same",
        },
    ),
    (
        ("--adapter",),
        {
            "dest": "forms",
            "action": "append_const",
            "const": "adapter",
            "help": "of a model with adapters write these alone, as peft reads them",
        },
    ),
    (
        ("--max-shard-size",),
        {"metavar": "SIZE", "type": _bytes, "help": "the most that one file of weights holds, such as 500MB; 5GB"},
    ),
    (
        ("--set",),
        {
            "metavar": "KEY=VALUE",
            "action": "append",
            "help": "change a setting of the run, such as models.policy.args.model_path=FOLDER; may be repeated",
        },
    ),
    (
        ("--program",),
        {
            "metavar": "SCRIPT.py",
            "help": "the program that trained it, for classes that are defined in it or take more than a name",
        },
    ),
]
"""Options of ``chatlearn export``."""
