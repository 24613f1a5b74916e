"""The command line: ``chatlearn run``, ``check``, ``flow``, ``schema``, ``doctor``, ``report`` and ``launch``.

Imports of the package are made where they are used, so that ``--help`` comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatlearn.errors import ChatLearnError, ConfigError, EngineError
from chatlearn.recipes import RECIPES

if TYPE_CHECKING:
    from chatlearn.config.schema import Config
    from chatlearn.engine.engine import Engine
    from chatlearn.flow.graph import Graph
    from chatlearn.runtime.placement import Node

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
"""

_PROGRAM = "RECIPE|SCRIPT.py"
_OUT = (("-o", "--out"), {"metavar": "FILE", "type": Path, "help": "write to this file"})


def _nodes(text: str) -> list[Node]:
    """The value of ``--cluster``."""
    from chatlearn.runtime.placement import parse_cluster

    try:
        return parse_cluster(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_CLUSTER = (
    ("--cluster",),
    {
        "metavar": "NODESxGPUS[xCORES]",
        "type": _nodes,
        "help": "print what would sit where on so many nodes with so many GPUs (and cores) each, as in 2x8; "
        "fail if something would find no place",
    },
)


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
    options: Sequence[tuple[tuple[str, ...], dict[str, Any]]] = ()
    takes_settings: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        0; 1 after an error of chatlearn (its text is printed); for ``launch`` the code of the program. The process ends
        with 2 for unusable arguments, and with 130 after Ctrl-C.
    """
    command, what, options, rest = _parsed(list(sys.argv[1:] if argv is None else argv))
    try:
        return command.run(what, options, rest) or 0
    except ChatLearnError as error:
        if error.__cause__ is not None:
            raise  # a user's own exception comes out with its own traceback first
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has had enough, as in `chatlearn flow … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parsed(words: list[str]) -> tuple[Command, str, argparse.Namespace, list[str]]:
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
        if command.what == _PROGRAM:
            text += f"\n\n{_PROGRAM}: a recipe ({', '.join(RECIPES)}) or a Python file; it comes first."
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
        own = "".join(f" [{flags[0]} {keys.get('metavar', '…')}]" for flags, keys in command.options)
        sub.usage = f"chatlearn {name}{first}{own}{further}"
        for flags, keywords in command.options:
            sub.add_argument(*flags, **keywords)
        parsers[name] = sub
    return parser, parsers


def _run(what: str, _: argparse.Namespace, rest: list[str]) -> None:
    if what.endswith(".py"):
        _run_script(what, rest)
    else:
        recipe, config = _recipe(what, rest)
        recipe.run(config)


def _check(what: str, options: argparse.Namespace, rest: list[str]) -> None:
    from chatlearn.config.describe import describe

    if not what:
        from chatlearn.config.upstream import notes

        config = _config(None, rest)
        print("\n".join([describe(config), *notes(config)]))
        _print_placements([(config, list(config.models))], options.cluster)
    elif not what.endswith(".py"):
        from chatlearn.engine.engine import checking_only

        recipe, config = _recipe(what, rest)
        with checking_only() as checked:
            flows = recipe.check(config)
        print(f"{describe(config)}\n\n{flows}")
        _print_placements(_settled(checked), options.cluster)
    else:
        _check_script(what, rest, options.cluster)


def _check_script(path: str, rest: list[str], cluster: list[Node] | None) -> None:
    """Runs a program up to where it would start something; prints its configuration, then what it prints."""
    from chatlearn.config.active import active_generation, get_config
    from chatlearn.config.describe import describe
    from chatlearn.engine.engine import checking_only

    before, printed = active_generation(), io.StringIO()
    checked: list[Engine] = []
    ended: SystemExit | None = None
    try:
        with checking_only() as checked, contextlib.redirect_stdout(printed):
            _run_script(path, rest)
    except SystemExit as end:  # how a program ends that goes on with results
        ended = end
    finally:
        if active_generation() != before:
            print(f"{describe(get_config())}\n")
        print(printed.getvalue(), end="")
    if checked:
        _print_placements(_settled(checked), cluster)
    if ended is not None:
        raise ended
    if not checked:
        raise _nothing_to_check(path)


def _settled(engines: Sequence[Engine]) -> list[tuple[Config, list[str]]]:
    """For each engine once: its configuration, and the names of its modules."""
    return [engine.settled_modules for engine in {id(engine): engine for engine in engines}.values()]


def _print_placements(runs: Sequence[tuple[Config, list[str]]], cluster: list[Node] | None) -> None:
    """Prints what would sit where on a cluster while each of these runs; nothing without one.

    Raises:
        ConfigError: something would find no place.
    """
    if cluster is None:
        return
    from chatlearn.config.check import raise_problems
    from chatlearn.runtime.placement import try_to_place

    placed = [try_to_place(config, names, cluster) for config, names in runs]
    raise_problems(problem for _, problems in placed for problem in problems)
    for placement, _ in placed:
        print(f"\nPlacement on {placement.table()}")


def _nothing_to_check(path: str) -> EngineError:
    return EngineError(f"{path} came to its end without engine.learn(), so there was nothing to check.")


def _flow(what: str, options: argparse.Namespace, rest: list[str]) -> None:
    _write(FORMATS[options.format](_graphs(what, rest)), options.out)


def _graphs(what: str, rest: list[str]) -> list[Graph]:
    """The graphs of a program's or a recipe's flows. What the program prints is left out."""
    from chatlearn.engine.engine import checking_only

    with checking_only() as engines, contextlib.redirect_stdout(io.StringIO()):
        if what.endswith(".py"):
            with contextlib.suppress(SystemExit):  # how a program ends that goes on with results
                _run_script(what, rest)
        else:
            recipe, config = _recipe(what, rest)
            recipe.check(config)
    if not engines:
        raise _nothing_to_check(what)
    executors = [each for engine in engines for each in (engine.environment, engine.trainer, engine.evaluator)]
    return list({id(executor.graph): executor.graph for executor in executors if executor is not None}.values())


def _as_text(graphs: list[Graph]) -> str:
    from chatlearn.flow.render import render

    return "\n\n".join(map(render, graphs))


def _as_mermaid(graphs: list[Graph]) -> str:
    from chatlearn.flow.render import mermaid

    return "\n\n".join(map(mermaid, graphs))


def _as_svg(graphs: list[Graph]) -> str:
    from chatlearn.flow.svg import svg

    return svg(graphs)


FORMATS: dict[str, Callable[[list[Graph]], str]] = {"text": _as_text, "mermaid": _as_mermaid, "svg": _as_svg}
"""What ``chatlearn flow --format`` takes."""


def _schema(_: str, options: argparse.Namespace, __: list[str]) -> None:
    import json

    from chatlearn.config.json_schema import json_schema

    _write(json.dumps(json_schema(), indent=2), options.out)


def _doctor(_: str, __: argparse.Namespace, ___: list[str]) -> None:
    from chatlearn.observe.doctor import doctor

    print(doctor())


def _report(what: str, options: argparse.Namespace, _: list[str]) -> None:
    from chatlearn.report import alarm_lines, write_report

    print(write_report(Path(what), options.out))
    for line in alarm_lines(Path(what)):
        print(line, file=sys.stderr)


def _launch(_: str, __: argparse.Namespace, rest: list[str]) -> int:
    from chatlearn.launch.command import launch_command

    return launch_command(rest)


COMMANDS: dict[str, Command] = {
    "run": Command("train: a recipe, or a program of your own", _run, _PROGRAM),
    "check": Command(
        "validate configuration and flows without starting; print each key's value and source, and the flows",
        _check,
        _PROGRAM,
        optional=True,
        options=[_CLUSTER],
    ),
    "flow": Command(
        "print the flows as text, as a Mermaid diagram or as an SVG picture",
        _flow,
        _PROGRAM,
        options=[(("--format",), {"choices": FORMATS, "default": "text", "help": "text if left out"}), _OUT],
    ),
    "schema": Command(
        "print the JSON Schema of the configuration, for editors", _schema, options=[_OUT], takes_settings=False
    ),
    "doctor": Command(
        "print versions, devices, and what each missing extra would bring", _doctor, takes_settings=False
    ),
    "report": Command(
        "write an HTML page about a run, and print its path",
        _report,
        "RUN_FOLDER",
        options=[_OUT],
        takes_settings=False,
    ),
    "launch": Command("start a program on several machines: hosts, Slurm, Kubernetes", _launch, takes_settings=False),
}
"""All commands, in the order of ``--help``."""


def _write(text: str, out: Path | None) -> None:
    """Prints the text, or writes it to a file, whose folder is made if need be.

    Raises:
        ConfigError: The file can't be written.
    """
    if out is None:
        print(text)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out.absolute()} can't be written: {error.strerror}. Give another path after -o.") from None


def _recipe(name: str, rest: list[str]) -> tuple[Any, Config]:
    """The module of a recipe, and the configuration that the words describe."""
    if name not in RECIPES:
        from difflib import get_close_matches

        near = get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"There is no recipe {name!r}{hint} Recipes: {', '.join(RECIPES)}. A program of your own ends in .py."
        )
    try:
        recipe = RECIPES[name].load()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The recipe {name} needs {error.name}, which is not installed: pip install 'chatlearn[demo]'"
        ) from None
    return recipe, _config(RECIPES[name].config_path, rest)


def _config(default: Path | None, rest: list[str]) -> Config:
    """The configuration that the words describe; ``default`` is the file without ``-c``."""
    from chatlearn.config.load import load_config, parse_command_line

    paths, overrides = parse_command_line(rest)
    unknown = [word for word in _not_ours(rest) if word not in overrides]
    message = (
        f"Nothing reads {', '.join(map(repr, unknown))}. chatlearn takes -c FILE, --set SETTING|FILE, "
        f"--resume [PATH] and settings such as runtime.num_episode=3; the recipe or program comes first."
    )
    try:
        config = load_config(paths or default, overrides)
    except ConfigError as error:
        if unknown:
            raise ConfigError(f"{message}\n{error}") from None
        raise
    if unknown:
        raise ConfigError(message)
    return config


def _not_ours(rest: list[str]) -> list[str]:
    """The words beside the options and what belongs to them."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("-c", "--config")
    options.add_argument("--set")
    options.add_argument("--resume", nargs="?")
    return options.parse_known_args(rest)[1]


def _run_script(path: str, rest: list[str]) -> None:
    """Runs a program as ``python path rest…`` would."""
    if not Path(path).is_file():
        raise ConfigError(f"There is no program {Path(path).absolute()}. Give the path of a Python file.")
    argv, search = sys.argv, list(sys.path)
    sys.argv = [path, *rest]
    sys.path.insert(0, str(Path(path).absolute().parent))
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, search


if __name__ == "__main__":
    raise SystemExit(main())
