"""Commands about programs: recipes, and scripts of the user."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatlearn.cli.command import Option
from chatlearn.cli.output import write
from chatlearn.errors import ConfigError, EngineError
from chatlearn.recipes import RECIPES

if TYPE_CHECKING:
    from chatlearn.config.schema import Config
    from chatlearn.engine.engine import Engine
    from chatlearn.engine.program import Program
    from chatlearn.flow.graph import Graph
    from chatlearn.modules.base import BaseModule
    from chatlearn.runtime.placement import Node


def _nodes(text: str) -> list[Node]:
    """The value of ``--cluster``."""
    from chatlearn.runtime.placement import parse_cluster

    try:
        return parse_cluster(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


CLUSTER: Option = (
    ("--cluster",),
    {
        "metavar": "NODESxGPUS[xCORES]",
        "type": _nodes,
        "help": "print what would sit where on so many nodes with so many GPUs (and cores) each, as in 2x8; "
        "fail if something would find no place",
    },
)


def run(what: str, _: argparse.Namespace, rest: list[str]) -> None:
    """``chatlearn run``."""
    from chatlearn.engine.program import running

    if what.endswith(".py"):
        with running():
            run_script(what, rest)
    else:
        recipe, config = _recipe(what, rest)
        with running(what, rest):
            recipe.run(config)


def run_again(program: Program, run: Path) -> None:
    """Starts the program of a run once more, for the ``learn()`` of that run (``chatlearn replay``)."""
    if program.recipe:
        recipe, config = _recipe(program.recipe, program.words)
        recipe.rebuild(config, run).learn()
    elif program.script:
        run_script(program.script, program.words)
    else:
        run_module(program.module, program.words)


def check(what: str, options: argparse.Namespace, rest: list[str]) -> None:
    """``chatlearn check``."""
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
            run_script(path, rest)
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


def flow(what: str, options: argparse.Namespace, rest: list[str]) -> None:
    """``chatlearn flow``."""
    write(FORMATS[options.format](_graphs(what, rest)), options.out)


def _graphs(what: str, rest: list[str]) -> list[Graph]:
    """The graphs of a program's or a recipe's flows. What the program prints is left out."""
    from chatlearn.engine.engine import checking_only

    with checking_only() as engines, contextlib.redirect_stdout(io.StringIO()):
        if what.endswith(".py"):
            with contextlib.suppress(SystemExit):  # how a program ends that goes on with results
                run_script(what, rest)
        else:
            recipe, config = _recipe(what, rest)
            recipe.check(config)
    if not engines:
        raise _nothing_to_check(what)
    executors = [each for engine in engines for each in (engine.environment, engine.trainer, engine.evaluator)]
    return list({id(executor.graph): executor.graph for executor in executors if executor is not None}.values())


def modules_of(path: str, config: Config) -> dict[str, BaseModule]:
    """The modules of a program's flows, by name; the program is run up to where it would start something.

    Args:
        path: of the program, whose output is left out.
        config: what ``chatlearn.init()`` finds in it.

    Raises:
        ChatLearnError: there is no such program, or it is wrong.
        EngineError: it came to its end without an engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        graphs = _graphs(path, ["-c", str(file)])
    return {name: module for graph in graphs for name, module in graph.modules.items()}


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
        f"--resume [PATH], --allow-change KEY and settings such as runtime.num_episode=3; the recipe or program comes "
        f"first."
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
    options.add_argument("--allow-change", action="append")
    return options.parse_known_args(rest)[1]


def run_script(path: str, rest: list[str]) -> None:
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


def run_module(name: str, rest: list[str]) -> None:
    """Runs a program as ``python -m name rest…`` would."""
    argv, search = sys.argv, list(sys.path)
    sys.argv = [name, *rest]  # run_module puts the file's path in place of the name
    sys.path.insert(0, os.getcwd())
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        sys.argv, sys.path[:] = argv, search
