"""All commands of the console script."""

from __future__ import annotations

from chatlearn.cli import machines, programs, replay, runs
from chatlearn.cli.command import OUT, PROGRAM, RUN, Command

COMMANDS: dict[str, Command] = {
    "run": Command("train: a recipe, or a program of your own", programs.run, PROGRAM),
    "check": Command(
        "validate configuration and flows without starting; print each key's value and source, and the flows",
        programs.check,
        PROGRAM,
        optional=True,
        options=[programs.CLUSTER],
    ),
    "flow": Command(
        "print the flows as text, as a Mermaid diagram or as an SVG picture",
        programs.flow,
        PROGRAM,
        options=[(("--format",), {"choices": programs.FORMATS, "default": "text", "help": "text if left out"}), OUT],
    ),
    "schema": Command(
        "print the JSON Schema of the configuration, for editors", machines.schema, options=[OUT], takes_settings=False
    ),
    "doctor": Command(
        "print versions, devices, and what each missing extra would bring", machines.doctor, takes_settings=False
    ),
    "report": Command(
        "write an HTML page about a run, and print its path", runs.report, RUN, options=[OUT], takes_settings=False
    ),
    "checkpoints": Command(
        "list the checkpoints of a run, verify them, and remove some",
        runs.checkpoints,
        RUN,
        options=runs.CHECKPOINTS,
        takes_settings=False,
    ),
    "export": Command(
        "write the model of a checkpoint as a folder that other tools load",
        runs.export,
        "CHECKPOINT|RUN_FOLDER",
        options=runs.EXPORT,
        takes_settings=False,
    ),
    "replay": Command(
        "make a sample's generation batch once more and compare it with the log, bit for bit",
        replay.replay,
        RUN,
        options=replay.OPTIONS,
    ),
    "launch": Command(
        "start a program on several machines: hosts, Slurm, Kubernetes", machines.launch, takes_settings=False
    ),
}
"""All commands, in the order of ``--help``."""
