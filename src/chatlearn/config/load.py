"""From a file, a mapping, the command line and the environment to a validated configuration."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatlearn.config.check import validate
from chatlearn.config.problem import Problem, config_error
from chatlearn.config.schema import SECTIONS, Config, canonical
from chatlearn.config.tree import Mark, Tree, tree_of, tree_of_config
from chatlearn.config.values import shown
from chatlearn.config.wording import known_keys, nearest

_COMMAND_LINE = "command line"
_OVERRIDE = re.compile(r"(--?)?([A-Za-z_]\w*)((?:\.[^.=\s]+)+)=(.*)", re.DOTALL)
_NEAR_SECTION = 0.75
"""How alike (of 1) a word's first part and a section must be to take the word for a mistyped override."""


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Loads and validates a configuration.

    Args:
        source: Path of a YAML file, a mapping, a configuration to start from, or None for the defaults.
        overrides: Settings that go over it, as ``"runtime.num_episode=3"``; values are read by YAML rules. Of
            two for one key the later wins.

    Raises:
        ConfigError: Lists every problem found, with file and line, what was expected, and how to fix it.
    """
    tree = _tree(source)
    _apply(tree, overrides)
    return validate(tree)


def load_config_text(text: str, name: str = "text", overrides: Sequence[str] = ()) -> Config:
    """As :func:`load_config`, from YAML text; ``name`` stands for the file in places."""
    from chatlearn.config.yaml_text import read_text

    tree = read_text(text, name)
    _apply(tree, overrides)
    return validate(tree)


def parse_command_line(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Finds chatlearn's own words on a command line and ignores all others, which are the program's.

    Its own are ``-c FILE`` (``-cFILE``, ``--config FILE``, ``--config=FILE``), ``--resume [PATH]`` and
    overrides ``section.key=value``. Whatever follows a bare ``--`` is ignored. A word that looks like an
    override of a mistyped section is returned too, so that :func:`load_config` reports it together with other
    problems.

    Args:
        argv: The words after the program's name.

    Returns:
        Path of the configuration file, or None, and the overrides.

    Raises:
        ConfigError: If ``-c`` comes without a file, or twice.
    """
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    paths: list[str] = []
    overrides: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("-c", "--config"):
            paths.append(words.pop(0) if words and not words[0].startswith("-") else "")
        elif word.startswith("--config="):
            paths.append(word.removeprefix("--config="))
        elif word.startswith("-c"):
            paths.append(word.removeprefix("-c"))
        elif word == "--resume":
            has_path = bool(words) and words[0] != "" and not words[0].startswith("-") and "=" not in words[0]
            overrides.append(f"runtime.resume={_as_text(words.pop(0)) if has_path else 'auto'}")
        elif word.startswith("--resume="):
            overrides.append(f"runtime.resume={_as_text(word.removeprefix('--resume='))}")
        elif _is_override(word):
            overrides.append(word)
    _check_paths(paths)
    return (paths[0] if paths else None), overrides


def _check_paths(paths: list[str]) -> None:
    if "" in paths:
        fix = "write `-c FILE`, with the path of a YAML file"
        raise config_error([Problem(_COMMAND_LINE, "", "`-c` or `--config` comes without a file", fix)])
    if len(paths) > 1:
        message = f"more than one configuration file: {', '.join(paths)}"
        raise config_error([Problem(_COMMAND_LINE, "", message, "keep one; set single keys with section.key=value")])


def _is_override(word: str) -> bool:
    match = _OVERRIDE.fullmatch(word)
    if match is None:
        return False
    dashes, section = match[1], match[2]
    # With dashes it may be an option of the program; only an exact section makes it ours (and an error).
    return section in known_keys("") or (not dashes and nearest(section, known_keys(""), _NEAR_SECTION) is not None)


def _as_text(path: str) -> str:
    """The path as a YAML value: in quotes where YAML would not read plain text."""
    from chatlearn.config.yaml_text import read_value

    scratch = Tree()
    read = read_value(scratch, path, ("path",), Mark(_COMMAND_LINE, "path"), environ={})
    if read == path and not scratch.problems:
        return path
    return "'" + path.replace("'", "''") + "'"


def _tree(source: Any) -> Tree:
    if source is None:
        return Tree()
    if isinstance(source, Config):
        return tree_of_config(source)
    if isinstance(source, Mapping):
        return tree_of(source, "dict")
    if isinstance(source, str | os.PathLike):
        from chatlearn.config.yaml_text import read_text

        path = os.fspath(source)
        return read_text(_read_file(path), path)
    fix = "give the path of a YAML file, a dict or a Config"
    raise config_error([Problem("the argument", "", f"expected a configuration, got {shown(source)}", fix)])


def _read_file(name: str | bytes) -> str:
    """Text of the file.

    Raises:
        ConfigError: If it can't be read.
    """
    path = Path(os.fsdecode(name)).expanduser().absolute()
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        message, fix = "no such file", _near_file(path)
    except IsADirectoryError:
        message, fix = "it is a folder", "name the YAML file in it"
    except UnicodeDecodeError as error:
        message, fix = f"not UTF-8 text (byte {error.start})", "save the file as UTF-8"
    except (OSError, ValueError) as error:
        message, fix = f"can't be read: {error}", "correct the path"
    raise config_error([Problem(str(path), "", message, fix)])


def _near_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either; correct the path"
    files = sorted(each.name for each in folder.iterdir() if each.is_file())
    yaml_files = [each for each in files if each.endswith((".yaml", ".yml"))]
    likely = difflib.get_close_matches(path.name, yaml_files, n=1, cutoff=0) or difflib.get_close_matches(
        path.name, files, n=1
    )
    return f"the nearest name in that folder is {likely[0]}" if likely else "that folder holds no YAML file"


def _apply(tree: Tree, overrides: Sequence[str]) -> None:
    """Puts overrides over a tree; their problems go to the tree's."""
    if isinstance(overrides, str):
        overrides = [overrides]
    if not isinstance(tree.data, dict):
        return
    for word in overrides:
        _apply_one(tree, word)


def _apply_one(tree: Tree, word: str) -> None:
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
