"""The command line: ``chatlearn run``, ``chatlearn check``."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatlearn.config.load import load_config, parse_command_line
from chatlearn.errors import ChatLearnError, ConfigError, EngineError
from chatlearn.recipes import RECIPES

_EPILOG = """\
examples:
  chatlearn run ppo                                   train the demo: PPO on a small model, CPU only
  chatlearn run ppo runtime.num_episode=20            the same, shorter; any key of the configuration can be set like
  this
  chatlearn run ppo --resume                          go on with the newest run of that name
  chatlearn run train.py -c my.yaml                   your own program; chatlearn.init() in it reads the same arguments
  chatlearn check train.py -c my.yaml                 find every mistake that can be found without starting, and print
  the flows

A recipe without -c uses its own YAML. Runs are written to runtime.output_dir (default: runs/), one folder each, never
overwritten.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        0; 1 after an error of chatlearn (its text is printed). The process ends with 2 for unusable arguments, and with
        130 after Ctrl-C.
    """
    arguments, rest = _parser().parse_known_args(argv)
    command = _check if arguments.command == "check" else _run
    try:
        command(arguments.what, rest)
    except ChatLearnError as error:
        if error.__cause__ is not None:
            raise  # a user's own exception comes out with its own traceback first
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatlearn",
        description="Align language models: modules, wired by plain functions, on a laptop or a cluster.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "run": "train: a recipe, or a program of your own",
        "check": "validate configuration and flows without starting, and print the flows",
    }.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="further arguments:\n"
            "  -c, --config FILE    YAML configuration\n"
            "  a.b=value            sets one key, for example runtime.seed=1 or models.policy.args.temperature=0.7\n"
            "  --resume [PATH]      go on with the newest run of that name, or with a run folder or checkpoint\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "what", metavar="RECIPE|SCRIPT.py", help=f"a recipe ({', '.join(RECIPES)}) or a Python file"
        )
    return parser


def _run(what: str, rest: list[str]) -> None:
    if what.endswith(".py"):
        _run_script(what, rest)
    else:
        recipe = _recipe(what)
        recipe.run(_recipe_config(recipe, rest))


def _check(what: str, rest: list[str]) -> None:
    if not what.endswith(".py"):
        recipe = _recipe(what)
        print(recipe.check(_recipe_config(recipe, rest)))
        return
    from chatlearn.engine.engine import checking_only

    with checking_only() as checked:
        _run_script(what, rest)
    if not checked:
        raise EngineError(f"{what} came to its end without engine.learn(), so there was nothing to check.")


def _recipe(name: str) -> Any:
    if name not in RECIPES:
        from difflib import get_close_matches

        near = get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"There is no recipe {name!r}{hint} Recipes: {', '.join(RECIPES)}. A program of your own ends in .py."
        )
    try:
        return importlib.import_module(RECIPES[name])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The recipe {name} needs {error.name}, which is not installed: pip install 'chatlearn[demo]'"
        ) from None


def _recipe_config(recipe: Any, rest: list[str]) -> Any:
    path, overrides = parse_command_line(rest)
    if unknown := [word for word in _not_ours(rest) if word not in overrides]:
        raise ConfigError(
            f"Nothing reads {', '.join(map(repr, unknown))}. A recipe takes -c FILE, --resume [PATH] and settings such "
            f"as runtime.num_episode=3."
        )
    return load_config(path or recipe.CONFIG, overrides)


def _not_ours(rest: list[str]) -> list[str]:
    """The words beside ``-c`` and ``--resume`` and what belongs to them."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("-c", "--config")
    options.add_argument("--resume", nargs="?")
    return options.parse_known_args(rest)[1]


def _run_script(path: str, rest: list[str]) -> None:
    """Runs a program as ``python path rest…`` would."""
    if not Path(path).is_file():
        raise ConfigError(f"There is no program {Path(path).absolute()}.")
    argv, search = sys.argv, list(sys.path)
    sys.argv = [path, *rest]
    sys.path.insert(0, str(Path(path).absolute().parent))
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, search


if __name__ == "__main__":
    raise SystemExit(main())
