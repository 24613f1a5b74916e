"""A configuration before it is validated: plain data, plus the place where each value was written.

A tree spells every key as the field is named; the user's own spelling stays in the marks, for the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chatlearn.config.problem import Problem
from chatlearn.config.schema import Config, Path, Section, aliases_at, section_of
from chatlearn.config.values import shown
from chatlearn.guards import is_dict, is_mapping


@dataclass(frozen=True)
class Mark:
    """Where a value was written, and how.

    Attributes:
        source: The place: "ppo.yaml:12", "command line", …
        key: The dotted key as written.
        text: The text of a value that is not text by itself, and of text with references in it; None for all others.
        outside: Whether that text came from the environment, a default in a reference, or the command line. There a
            value for a key that takes text is text, whatever it looks like.
    """

    source: str
    key: str
    text: str | None = None
    outside: bool = False


BROKEN: Any = object()
"""Stands for a value that could not be read. Its problem is recorded; the key is left out of the tree."""


@dataclass
class Tree:
    """Plain data with marks, and the problems found while reading it.

    Attributes:
        data: A mapping of settings, or BROKEN.
        marks: Where each value was written, by its path in the whole configuration.
        problems: What is wrong, each with the path of its value.
        at: Where the settings stand in the configuration.
        partial: Whether a file is missing from it, so that nothing can be said about keys that it lacks.
    """

    data: Any = field(default_factory=dict[Any, Any])
    marks: dict[Path, Mark] = field(default_factory=dict[Path, Mark])
    problems: list[tuple[Path, Problem]] = field(default_factory=list[tuple[Path, Problem]])
    at: Path = ()
    partial: bool = False

    def mark_at(self, path: Path) -> Mark:
        """The mark of the value at ``path``, or else of the nearest section around it."""
        for length in range(len(path), 0, -1):
            if mark := self.marks.get(path[:length]):
                return mark if length == len(path) else Mark(mark.source, ".".join([mark.key, *path[length:]]))
        return Mark("defaults", ".".join(path))

    def add_problem(self, path: Path, mark: Mark, message: str, fix: str = "") -> Any:
        """Records a problem with the value at ``path``; returns BROKEN."""
        self.problems.append((path, Problem(mark.source, mark.key, message, fix)))
        return BROKEN

    def mapping(
        self,
        pairs: Iterable[tuple[Any, Any, str]],
        path: Path,
        written: str,
        read: Callable[[Any, Path, Mark], Any],
    ) -> dict[Any, Any]:
        """Builds the mapping that stands at ``path``.

        Args:
            pairs: Key, raw value and source of each entry.
            path: Path of the mapping, in names of fields.
            written: Its dotted key as written.
            read: Turns a raw value into a value of the tree.
        """
        aliases = aliases_at(path)
        result: dict[Any, Any] = {}
        for key, raw, source in pairs:
            mark = Mark(source, f"{written}.{key}" if written else str(key))
            # Below `args` a mapping is the user's own and may have numbers as keys.
            if len(path) <= 3 and not isinstance(key, str):
                self.add_problem(
                    (*path, str(key)), mark, f"a key must be text, got {shown(key)}", "put quotes around it"
                )
                continue
            name = aliases.get(key, key)
            child = (*path, str(name))
            if name in result:
                self._given_twice(child, mark)
                continue
            self.marks[child] = mark
            value = read(raw, child, mark)
            if value is not BROKEN:
                result[name] = {} if value is None and _may_be_empty(child) else value
        return result

    def put(self, path: Path, value: Any, mark: Mark) -> None:
        """Sets the value at ``path``, making the sections above it, which then come from the same source."""
        parent, written = self.data, mark.key.split(".")
        for length, part in enumerate(path[:-1], start=1):
            part = _same_key(parent, part)
            if parent.get(part) is None:
                parent[part] = {}
                self.marks[path[:length]] = Mark(mark.source, ".".join(written[:length]))
            parent = parent[part]
            if not is_dict(parent):
                above = ".".join(path[:length])
                message = f"`{above}` is {shown(parent)}, so nothing can be set below it"
                self.add_problem(path, mark, message, f"set `{above}` itself")
                return
        if value is not BROKEN:
            parent[_same_key(parent, path[-1])] = {} if value is None and _may_be_empty(path) else value

    def replace(self, path: Path, value: Any) -> None:
        """Puts another value in the place of one that is there, in a mapping or a list."""
        parent = self.data
        for part in path[:-1]:
            parent = parent[_place_in(parent, part)]
        parent[_place_in(parent, path[-1])] = value

    def lay_over(self, under: Tree) -> None:
        """Puts this tree's settings over those of another, which stand at or below its own place.

        Mappings are merged; any other value replaces what it lies over, with its places and problems.
        """
        at = under.at
        replaced: set[Path] = set()

        def merged(low: Any, high: Any, path: Path) -> Any:
            if not is_dict(low) or not is_dict(high):
                replaced.add(path)
                return high
            result = dict(low)
            for key, value in high.items():
                result[key] = merged(low.get(key), value, (*path, str(key)))
            return result

        self.partial |= under.partial or under.data is BROKEN
        if under.data is not BROKEN and self.data is not BROKEN:
            inside = at[len(self.at) :]
            self._set(inside, merged(under.data, self._get(inside), at))

        def stands(path: Path) -> bool:
            return not any(path[:length] in replaced for length in range(len(at), len(path) + 1))

        self.marks = {path: mark for path, mark in under.marks.items() if stands(path)} | self.marks
        self.problems = [each for each in under.problems if stands(each[0])] + self.problems

    def _get(self, path: Path) -> Any:
        value = self.data
        for part in path:
            value = value.get(_same_key(value, part), {})
        return value

    def _set(self, path: Path, value: Any) -> None:
        if not path:
            self.data = value
            return
        parent = self._get(path[:-1])
        parent[_same_key(parent, path[-1])] = value

    def forget(self, path: Path) -> None:
        """Drops the marks and problems at and below ``path``, before a new value is read."""
        self.marks = {each: mark for each, mark in self.marks.items() if each[: len(path)] != path}
        self.problems = [each for each in self.problems if each[0][: len(path)] != path]

    def _given_twice(self, path: Path, mark: Mark) -> None:
        first = self.marks[path]
        what = "given twice" if first.key == mark.key else f"the same key as `{first.key}`, which is given too"
        at = "" if first.source == mark.source else f" (first at {first.source})"
        self.add_problem(path, mark, what + at, "keep one of the two")


def tree_of(data: Mapping[Any, Any], source: str) -> Tree:
    """The tree of a Python mapping; sections may be given as models. Values are taken as they are."""
    tree = Tree()

    def pairs(mapping: Mapping[Any, Any]) -> list[tuple[Any, Any, str]]:
        return [(key, value, source) for key, value in mapping.items()]

    def read(value: Any, path: Path, mark: Mark) -> Any:
        if isinstance(value, Section):
            value = value.model_dump()
        return tree.mapping(pairs(value), path, mark.key, read) if is_mapping(value) else value

    try:
        tree.data = tree.mapping(pairs(data), (), "", read)
    except RecursionError:
        message = "the mapping is nested too deeply, or contains itself"
        tree.add_problem((), Mark(source, ""), message, "make it flatter, or take it out of itself")
    return tree


def tree_of_config(config: Config) -> Tree:
    """The tree of a configuration, with its sources."""
    data = config.model_dump()
    if config.sources.get("runtime.train_global_batch_size", "default") == "default":
        # It followed from the micro-batch size, which may be overridden now.
        del data["runtime"]["train_global_batch_size"]
    tree = tree_of(data, "default")
    for path in tree.marks:
        key = ".".join(path)
        text, outside = config.written.get(key, (None, False))
        tree.marks[path] = Mark(config.sources.get(key, "default"), key, text, outside)
    return tree


def sources_of(config: Config, tree: Tree) -> dict[str, str]:
    """Source of every key of ``config`` by dotted key; see :attr:`Config.sources`."""
    sources: dict[str, str] = {}

    def visit(mapping: Mapping[Any, Any], path: Path) -> None:
        for key, value in mapping.items():
            child = (*path, str(key))
            # A key of the schema that was not written is a default even if its section was written.
            mark = tree.mark_at(child) if "args" in child[2:3] and len(child) > 3 else tree.marks.get(child)
            sources[".".join(child)] = mark.source if mark else "default"
            if is_mapping(value):
                visit(value, child)

    visit(config.model_dump(), ())
    return sources


def written_of(tree: Tree) -> dict[str, tuple[str, bool]]:
    """Texts of the users' own settings by dotted key; see :attr:`Config.written`."""
    return {
        ".".join(path): (mark.text, mark.outside)
        for path, mark in tree.marks.items()
        if mark.text is not None and "args" in path[2:3]
    }


def _may_be_empty(path: Path) -> bool:
    """Whether nothing at all may stand under a key, as in a bare line ``models:``."""
    return path == ("models",) or section_of(path) is not None


def _same_key(mapping: Mapping[Any, Any], part: str) -> Any:
    """The key of ``mapping`` that reads ``part``: an override names the key 0 as the text "0"."""
    return next((key for key in mapping if str(key) == part), part)


def _place_in(values: Any, part: str) -> Any:
    return _same_key(values, part) if is_dict(values) else int(part)
