"""YAML files that make up a configuration: what a file includes, and files with settings of one model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from chatlearn.config.schema import INCLUDES, Path
from chatlearn.config.tree import BROKEN, Mark, Tree
from chatlearn.config.values import shown
from chatlearn.guards import is_dict, is_path, is_sequence

_LONGEST_NAME = 255
"""Bytes of a file's name at most, on all usual file systems."""

Chain = tuple[FilePath, ...]
"""Files that are being read, each included by the one before."""


def read_tree(name: str | bytes, at: Path = (), asked: Mark | None = None, chain: Chain = ()) -> Tree:
    """The settings of a YAML file over those of the files that it includes.

    Args:
        name: Path of the file, as it is called in places.
        at: Where its settings stand in the configuration.
        asked: Where the file is named; None where the caller named it.
        chain: The files that include it.

    Returns:
        The tree; a file that can't be read is a problem in it.
    """
    from chatlearn.config.yaml_text import read_text

    name = os.fsdecode(name)
    if asked is None and _is_text(name):
        tree = Tree(data=BROKEN, at=at)
        fix = "give the path of a file or a dict; `load_config_text` of chatlearn.config reads text"
        tree.add_problem(at, Mark("the argument", ""), f"expected the path of a YAML file, got {shown(name)}", fix)
        return tree
    path = FilePath(os.path.expanduser(name)).absolute()
    text, problem = _read(path)
    if problem is None and (real := path.resolve()) in chain:
        problem = f"{' -> '.join(each.name for each in (*chain, real))}: includes go round", "take one of them out"
    if problem is not None:
        tree = Tree(data=BROKEN, at=at)
        message = f"{path}: {problem[0]}" if asked else problem[0]
        tree.add_problem(at, asked or Mark(str(path), ""), message, problem[1])
        return tree
    tree = read_text(text, name, at)
    folder = os.path.dirname(name)
    _anchor_model_files(tree, folder)
    add_includes(tree, folder, (*chain, path.resolve()))
    return tree


def add_includes(tree: Tree, folder: str = "", chain: Chain = ()) -> None:
    """Puts a tree's settings over those of the files that its key ``includes`` names, and takes the key out.

    Args:
        tree: What one file says, or a mapping.
        folder: What the files' paths are relative to.
        chain: The files that are being read.
    """
    if not is_dict(tree.data) or INCLUDES not in tree.data:
        return
    given, place = tree.data.pop(INCLUDES), (*tree.at, INCLUDES)
    files = [] if given is None else [given] if is_path(given) else given
    if not is_sequence(files) or not all(is_path(file) for file in files):
        found = given if not is_sequence(given) else next(each for each in given if not is_path(each))
        message = f"expected the path of a YAML file or a list of paths, got {shown(found)}"
        tree.add_problem(place, tree.mark_at(place), message, f"write {INCLUDES}: [base.yaml]")
        return
    names: list[str] = [os.fspath(file) for file in files]
    below = Tree(at=tree.at)
    for index, name in enumerate(names):
        asked = tree.mark_at(place if files is not given else (*place, str(index)))
        included = read_tree(_joined(folder, name), tree.at, asked, chain)
        included.lay_over(below)
        below = included
    tree.lay_over(below)


def add_model_files(tree: Tree, known: Mapping[str, str | None] | None = None) -> None:
    """Puts each model's ``args`` over the settings of its ``model_config_file``.

    Args:
        tree: The whole configuration.
        known: Files by model that were read before, and need not be read again.
    """
    for name, model in _models(tree):
        file, place = model.get("model_config_file"), ("models", name, "model_config_file")
        mark = tree.marks.get(place)
        if mark and mark.outside and mark.text and file is not None:
            file = mark.text
        if not is_path(file) or not str(file):
            continue
        path = model["model_config_file"] = _joined(os.getcwd(), str(file))
        if (known or {}).get(name) == path:
            continue
        at, asked = ("models", name, "args"), tree.mark_at(place)
        if model.get("args") is None:
            model["args"] = {}
        tree.marks.setdefault(at, asked)
        tree.lay_over(read_tree(_short(path), at, asked))


def _anchor_model_files(tree: Tree, folder: str) -> None:
    """Makes the paths of ``model_config_file`` in one file absolute: they are relative to that file."""
    for _, model in _models(tree):
        if isinstance(file := model.get("model_config_file"), str) and file:
            model["model_config_file"] = _joined(os.path.abspath(os.path.expanduser(folder)), file)


def _models(tree: Tree) -> list[tuple[str, dict[str, Any]]]:
    models = tree.data.get("models") if is_dict(tree.data) and not tree.at else None
    if not is_dict(models):
        return []
    return [(name, model) for name, model in models.items() if isinstance(name, str) and is_dict(model)]


def _read(path: FilePath) -> tuple[str, tuple[str, str] | None]:
    """Text of the file, or why it can't be read and what to do."""
    try:
        return path.read_text(encoding="utf-8-sig"), None
    except FileNotFoundError:
        return "", ("no such file", _near_file(path))
    except IsADirectoryError:
        return "", ("it is a folder", "name the YAML file in it")
    except UnicodeDecodeError as error:
        return "", (f"not UTF-8 text (byte {error.start})", "save the file as UTF-8")
    except (OSError, ValueError) as error:
        return "", (f"can't be read: {error}", "correct the path")


def _is_text(name: str) -> bool:
    """Whether what should be a path is the text of a configuration, or can't be a path for its length."""
    if "\n" in name or max(map(len, name.split("/"))) > _LONGEST_NAME:
        return True
    return ": " in name and not os.path.exists(name)


def _near_file(path: FilePath) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either; correct the path"
    if not os.access(folder, os.R_OK):
        return "correct the path"
    files = sorted(each.name for each in folder.iterdir() if each.is_file())
    yaml_files = [each for each in files if each.endswith((".yaml", ".yml"))]
    likely = difflib.get_close_matches(path.name, yaml_files, n=1, cutoff=0) or difflib.get_close_matches(
        path.name, files, n=1
    )
    return f"the nearest name in that folder is {likely[0]}" if likely else "that folder holds no YAML file"


def _joined(folder: str, file: str) -> str:
    return os.path.normpath(os.path.join(folder, os.path.expanduser(file)))


def _short(path: str) -> str:
    """The path as it stands in places: relative where it lies below the current folder."""
    below = os.path.join(os.getcwd(), "")
    return path.removeprefix(below)
