"""The words of a command line: which command they mean, and what is left for it."""

from __future__ import annotations

import argparse
from typing import Any

from chatlearn.cli.command import PROGRAM, Command
from chatlearn.cli.commands import COMMANDS
from chatlearn.recipes import RECIPES

_EPILOG = """\
examples:
  chatlearn run ppo                                   train the demo: PPO on a small model, CPU only
  chatlearn run ppo runtime.num_episode=20            the same, shorter; any key can be set like this
  chatlearn run ppo --resume                          go on with the newest run of that name
  chatlearn run train.py -c my.yaml                   your own program; chatlearn.init() in it reads the same arguments
  chatlearn check train.py -c my.yaml                 find mistakes without starting; print all values and flows
  chatlearn check train.py -c my.yaml --cluster 2x8   the same, and what would sit where on 2 nodes with 8 GPUs each
  chatlearn flow train.py --format svg -o flow.svg    draw the flows
  chatlearn schema -o chatlearn.schema.json           let your editor complete and check the YAML
  chatlearn doctor                                    what is installed, and what each missing extra would bring
  chatlearn report runs/ppo                           one HTML page about a run
  chatlearn checkpoints runs/ppo --verify             what can be resumed, and whether it is whole
  chatlearn export runs/ppo --to hf -o my-model       the trained model of the newest checkpoint
  chatlearn launch hosts --hosts a,b -- chatlearn run ppo   the same on several machines

A recipe without -c uses its own YAML. Runs are written to runtime.output_dir (default: runs/), one folder each, never
overwritten.
"""

_SETTINGS = """\
further arguments:
  -c, --config FILE    YAML configuration; may be repeated, of two for one key the later file wins
  a.b=value            sets one key, for example runtime.seed=1 or models.policy.args.temperature=0.7
  --set a.b=value      the same
  --set FILE           puts the settings of a YAML file over the configuration
  --resume [PATH]      go on with the newest run of that name, or with a run folder or checkpoint
  --allow-change KEY   let a resumed run change this setting, which its numbers depend on; may be repeated
"""


def parsed(words: list[str]) -> tuple[Command, str, argparse.Namespace, list[str]]:
    """The command of a line, its first word, its options, and all words that are no options."""
    if words[:1] == ["launch"]:  # has parsers of its own, and passes on what stands behind --
        return COMMANDS["launch"], "", argparse.Namespace(), words[1:]
    command = COMMANDS.get(words[0]) if words else None
    what = words.pop(1) if command and _has_first_word(command, words[1:]) else ""
    parser, parsers = _parsers()
    options, rest = parser.parse_known_args(words)
    command = COMMANDS[options.command]
    if command.what and not what and not (command.optional and rest):
        parsers[options.command].error(f"{command.what} is missing; it comes first")
    if rest and not command.takes_settings:
        parsers[options.command].error(f"nothing reads {', '.join(map(repr, rest))}")
    return command, what, options, rest


def _has_first_word(command: Command, words: list[str]) -> bool:
    """Whether the words begin with what the command is about, and not with an option or a setting."""
    if not command.what or not words or words[0].startswith("-"):
        return False
    return not (command.takes_settings and "=" in words[0])


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="chatlearn",
        description="Align language models: modules, wired by plain functions, on a laptop or a cluster.",
        epilog=_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        text = command.help[0].upper() + command.help[1:] + "."
        if command.what == PROGRAM:
            text += f"\n\n{PROGRAM}: a recipe ({', '.join(RECIPES)}) or a Python file; it comes first."
        sub = commands.add_parser(
            name,
            help=command.help,
            description=text,
            epilog=_SETTINGS if command.takes_settings else None,
            formatter_class=raw,
            allow_abbrev=False,
        )
        first = f" [{command.what}]" if command.optional else f" {command.what}" if command.what else ""
        further = " …" if command.takes_settings else ""
        own = "".join(f" {_usage(*option)}" for option in command.options)
        sub.usage = f"chatlearn {name}{first}{own}{further}"
        for flags, keywords in command.options:
            sub.add_argument(*flags, **keywords)
        parsers[name] = sub
    return parser, parsers


def _usage(flags: tuple[str, ...], keywords: dict[str, Any]) -> str:
    """An option in the line that says how a command is used."""
    has_value = "const" not in keywords and keywords.get("action") != "store_true"
    text = f"{flags[0]} {keywords.get('metavar', '…')}" if has_value else flags[0]
    return text if keywords.get("required") else f"[{text}]"
