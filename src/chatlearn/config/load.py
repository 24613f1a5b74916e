"""From files, mappings, the command line and the environment to a validated configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from chatlearn.config.check import validate
from chatlearn.config.environment import escape
from chatlearn.config.files import add_includes, add_model_files, read_tree
from chatlearn.config.problem import Problem, config_error
from chatlearn.config.schema import SECTIONS, Config, canonical
from chatlearn.config.tree import Mark, Tree, tree_of, tree_of_config
from chatlearn.config.values import shown
from chatlearn.config.wording import known_keys, nearest
from chatlearn.guards import is_dict, is_mapping, is_path, is_sequence

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any] | Config | None
"""What a configuration is loaded from: a YAML file or several, a mapping, a Config, or nothing."""

_COMMAND_LINE = "command line"
_OVERRIDE = re.compile(r"(--?)?([A-Za-z_]\w*)((?:\.[^.=\s]+)+)=(.*)", re.DOTALL)
_NEAR_SECTION = 0.75
"""How alike (of 1) a word's first part and a section must be to take the word for a mistyped override."""


def load_config(source: Source = None, overrides: Sequence[str] = ()) -> Config:
    """Loads and validates a configuration.

    Args:
        source: Path of a YAML file, or a list of paths, whose settings are merged (of two for one key the later file
            wins); or a mapping, a configuration to start from, or None for the defaults.
        overrides: What goes over it, in this order: settings as ``"runtime.num_episode=3"``, whose values are read by
            YAML rules, and paths of YAML files. Of two for one key the later wins.

    Raises:
        ConfigError: Lists every problem found, with file and line, what was expected, and how to fix it.
    """
    known = {name: model.model_config_file for name, model in source.models.items()} if _is_config(source) else {}
    return _loaded(_tree(source), overrides, known)


def load_config_text(text: str, name: str = "text", overrides: Sequence[str] = ()) -> Config:
    """As :func:`load_config`, from YAML text; ``name`` stands for the file in places.

    What the text includes is relative to the current folder.
    """
    from chatlearn.config.yaml_text import read_text

    tree = read_text(text, name)
    add_includes(tree)
    return _loaded(tree, overrides, {})


def parse_command_line(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Finds chatlearn's own words on a command line and ignores all others, which are the program's.

    Its own are ``-c FILE`` (``-cFILE``, ``-c=FILE``, ``--config FILE``, ``--config=FILE``), ``--set SETTING|FILE``,
    ``--resume [PATH]``, ``--allow-change KEY`` (which may be repeated; together they are ``runtime.allow_change``) and
    overrides ``section.key=value``. Whatever follows a bare ``--`` is ignored. A word that looks like an override of a
    mistyped section is returned too, so that :func:`load_config` reports it together with other problems.

    Args:
        argv: The words after the program's name.

    Returns:
        Paths of the configuration files, and what goes over them: overrides and paths, in order.

    Raises:
        ConfigError: If ``-c``, ``--set`` or ``--allow-change`` comes without a value.
    """
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    paths: list[str] = []
    overrides: list[str] = []
    allowed: list[str] = []
    while words:
        word = words.pop(0)
        name, equals, rest = word.partition("=")
        if word.startswith("-c") and not word.startswith("--"):
            file = word.removeprefix("-c").removeprefix("=")
            paths.append(file or _value_of("-c", words if word == "-c" else []))
        elif name in ("--config", "--set"):
            value = rest if equals else _value_of(name, words)
            (paths if name == "--config" else overrides).append(value or _value_of(name, []))
        elif word == "--resume":
            has_path = bool(words) and words[0] != "" and not words[0].startswith("-") and "=" not in words[0]
            overrides.append(f"runtime.resume={_as_text(words.pop(0)) if has_path else 'auto'}")
        elif name == "--resume":
            overrides.append(f"runtime.resume={_as_text(rest)}")
        elif name == "--allow-change":
            allowed.append(_as_text(rest or _value_of(name, [] if equals else words)))
        elif _is_override(word):
            overrides.append(word)
    if allowed:
        overrides.append(f"runtime.allow_change=[{', '.join(allowed)}]")
    return paths, overrides


_OPTIONS = {
    "-c": ("without a file", "write `-c FILE`, with the path of a YAML file"),
    "--config": ("without a file", "write `--config FILE`, with the path of a YAML file"),
    "--allow-change": ("without a key", "write `--allow-change KEY`, such as --allow-change runtime.seed"),
    "--set": ("without a setting", "write `--set section.key=value`, or `--set FILE` with the path of a YAML file"),
}
"""Options with a value: what an error says that misses it, and the fix."""


def _value_of(option: str, words: list[str]) -> str:
    """Takes the option's value from the words that follow it.

    Raises:
        ConfigError: There is none.
    """
    if words and words[0] and not words[0].startswith("-"):
        return words.pop(0)
    missing, fix = _OPTIONS[option]
    raise config_error([Problem(_COMMAND_LINE, "", f"`{option}` comes {missing}", fix)])


def _is_override(word: str) -> bool:
    match = _OVERRIDE.fullmatch(word)
    if match is None:
        return False
    dashes, section = match[1], match[2]
    # With dashes it may be an option of the program; only an exact section makes it ours (and an error).
    return section in known_keys("") or (not dashes and nearest(section, known_keys(""), _NEAR_SECTION) is not None)


def _as_text(path: str) -> str:
    """The path as a YAML value that means this very text."""
    return "'" + escape(path).replace("'", "''") + "'"


def _is_config(source: Any) -> TypeGuard[Config]:
    return isinstance(source, Config)


def _tree(source: Any) -> Tree:
    if source is None:
        return Tree()
    if isinstance(source, Config):
        return tree_of_config(source)
    if is_mapping(source):
        tree = tree_of(source, "dict")
        add_includes(tree)
        return tree
    files = [source] if is_path(source) else source
    if not is_sequence(files) or not all(is_path(file) for file in files):
        fix = "give the path of a YAML file or a list of paths, a dict or a Config"
        raise config_error([Problem("the argument", "", f"expected a configuration, got {shown(source)}", fix)])
    tree = Tree()
    names: list[str] = [os.fspath(file) for file in files]
    for name in names:
        tree = _over(read_tree(name), tree)
    return tree


def _over(tree: Tree, under: Tree) -> Tree:
    tree.lay_over(under)
    return tree


def _loaded(tree: Tree, overrides: Sequence[str], known: Mapping[str, str | None]) -> Config:
    """The configuration that a tree and what goes over it describe."""
    words: list[Any] = [overrides] if isinstance(overrides, str) else list(overrides)
    for word in words:
        if _is_file(word):
            tree = _over(read_tree(word, asked=Mark(_COMMAND_LINE, "")), tree)
        elif is_dict(tree.data):
            _apply(tree, word)
    add_model_files(tree, known)
    return validate(tree)


def _is_file(word: Any) -> bool:
    """Whether a word over the configuration is the path of a file: no setting, and named like one or without `=`."""
    if not isinstance(word, str) or not word.strip() or _OVERRIDE.fullmatch(word):
        return False
    return word.endswith((".yaml", ".yml")) or "=" not in word


def _apply(tree: Tree, word: Any) -> None:
    """Puts one override over a tree; its problems go to the tree's."""
    from chatlearn.config.yaml_text import read_value

    match = _OVERRIDE.fullmatch(word) if isinstance(word, str) else None
    mark = Mark(_COMMAND_LINE, match[2] + match[3] if match else "")
    if match is None:
        fix = "write section.key=value, as in runtime.num_episode=3"
        tree.add_problem((), mark, f"expected an override, got {shown(word)}", fix)
    elif match[1]:
        tree.add_problem((), mark, "an override has no dashes", f"write {match[2]}{match[3]}={match[4]}")
    elif match[2] not in known_keys(""):
        guess = nearest(match[2], known_keys(""))
        hint = f"; did you mean `{guess}`?" if guess else ""
        fix = f"write {guess}{match[3]}=…" if guess else f"begin with one of: {', '.join(SECTIONS[''].model_fields)}"
        tree.add_problem((), mark, f"unknown section `{match[2]}`{hint}", fix)
    else:
        path = canonical(tuple((match[2] + match[3]).split(".")))
        tree.forget(path)
        tree.put(path, read_value(tree, match[4], path, mark), mark)
