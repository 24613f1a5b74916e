"""YAML as this project reads and writes it.

The dialect is PyYAML's safe one with the surprises taken out: ``1e-4`` is a number, ``2024-01-01`` and
``12:30`` are text, ``010`` is ten. A key given twice is a problem. Reading keeps the line of every key.
``${NAME:default}`` in a value comes from the environment; ``$${NAME}`` is the text ``${NAME}`` itself.

A value of the environment or the command line is a number, true, false, null, a list or a mapping in brackets, or
text in quotes; all else is text as it stands, so that ``a: b`` and ``#ff0`` need no quotes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import yaml
from yaml.representer import SafeRepresenter

from chatlearn.config.environment import Variable, escape, split_references
from chatlearn.config.frozen import FrozenDict, FrozenList
from chatlearn.config.schema import Config, Path
from chatlearn.config.tree import BROKEN, Mark, Tree
from chatlearn.config.values import shown
from chatlearn.config.wording import expectation, field_at
from chatlearn.guards import is_dict, is_list, is_mapping

for _dumper in (yaml.SafeDumper, yaml.Dumper):  # what a configuration holds is plain YAML for everybody
    _dumper.add_representer(FrozenDict, SafeRepresenter.represent_dict)
    _dumper.add_representer(FrozenList, SafeRepresenter.represent_list)

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in ("null", "bool", "int", "float", "str")}
_MAX_VALUES = 100_000
"""YAML aliases can make a small text grow without bound; a configuration is never this large."""

# pyright: reportUnknownMemberType=false
# The stubs of PyYAML leave some types open.


class _Loader(yaml.SafeLoader):
    """SafeLoader with the dialect's rules for plain scalars, which knows the scalars that have a tag of their own."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.tagged: set[int] = set()  # by id of a node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        tag = cast("Any", self).peek_event().tag
        node = super().compose_scalar_node(anchor)
        if tag:
            self.tagged.add(id(node))
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around what the dialect would read as something else."""


_INT = r"[-+]?(?:0x[0-9a-fA-F_]*[0-9a-fA-F]|0b[01_]*[01]|0o[0-7_]*[0-7]|[0-9][0-9_]*)"
_FLOAT = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_REPLACED = {_TAG + name for name in ("int", "float", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in _REPLACED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "int", re.compile(rf"(?:{_INT})\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", re.compile(rf"(?:{_FLOAT})\Z"), list("-+0123456789."))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "").lower()
    digits = text.lstrip("-+")
    return int(text, 0 if digits[:2] in ("0x", "0b", "0o") else 10)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Escapes keep a value on one line, so that its comment stands beside it.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar(_TAG + "str", value, style=style)


_Loader.add_constructor(_TAG + "int", _construct_int)
_Dumper.add_representer(str, _represent_text)


def read_text(text: str, name: str, at: Path = (), environ: Mapping[str, str] = os.environ) -> Tree:
    """Reads a whole YAML text.

    Args:
        text: The YAML.
        name: What to call the text in places, as in "ppo.yaml:12".
        at: Where its settings stand in the configuration.
        environ: The environment that ``${NAME:default}`` refers to.

    Returns:
        The tree of the settings at that path. Its data is BROKEN if the text can't be read at all; empty text gives an
        empty mapping.
    """
    tree = Tree(at=at)
    data = _Reader(tree, name, None, environ).read(text, at, Mark(name, ".".join(at)))
    if data is not None and data is not BROKEN and not is_dict(data):
        fix = "start with a section such as `runtime:` and put `key: value` lines under it"
        message = f"expected {'settings' if at else 'sections'} at the top level, got {shown(data)}"
        data = tree.add_problem(at, Mark(f"{name}:1", ".".join(at)), message, "write `key: value` lines" if at else fix)
    tree.data = {} if data is None else data
    return tree


def read_value(tree: Tree, text: str, path: Path, mark: Mark, environ: Mapping[str, str] = os.environ) -> Any:
    """Reads a value from the command line and marks it in ``tree`` at ``path``; BROKEN if it can't be read."""
    tree.marks[path] = mark
    return _Reader(tree, "", mark.source, environ).read_from_outside(text, path, mark)


class _Reader:
    """Reads one text into a tree, keeping places."""

    def __init__(self, tree: Tree, name: str, source: str | None, environ: Mapping[str, str] | None) -> None:
        self.tree = tree
        self.name = name
        self.source = source  # one source for all values, or None for lines of `name`
        self.environ = environ  # None: `${…}` has been dealt with
        self.own_keys: dict[int, set[int]] = {}  # by id of a mapping node: key nodes that are not merged in
        self.open: list[yaml.Node] = []
        self.num_values = 0

    def read(self, text: str, path: Path, mark: Mark) -> Any:
        """The value of the whole text, or BROKEN."""
        try:
            self.loader = _Loader(text)
            node = self.loader.get_single_node()
            return None if node is None else self.value(node, path, mark)
        except yaml.YAMLError as error:
            return self._syntax_problem(error, path, mark)
        except RecursionError:
            return self.tree.add_problem(path, mark, "the YAML is nested too deeply", "make it flatter")

    def read_from_outside(self, text: str, path: Path, mark: Mark) -> Any:
        """The value that one line from the environment or the command line stands for, or BROKEN."""
        text = text.strip()
        if not self.is_delimited(text, path):
            return self.line(text, path, mark)
        return self._note(text, self.read(text, path, mark), path, mark)

    def is_delimited(self, text: str, path: Path) -> bool:
        """Whether text is a list or mapping in brackets (or a broken one, for a key that takes such), or in quotes."""
        if text[:1] not in ("[", "{", "'", '"'):
            return False
        try:
            node = _Loader(text).get_single_node()
        except yaml.YAMLError:
            field = field_at(Config, path)
            return text[0] in "[{" and (field is None or expectation(field) not in ("text", "text or null"))
        except RecursionError:
            return True
        return isinstance(node, yaml.ScalarNode) or (isinstance(node, yaml.CollectionNode) and bool(node.flow_style))

    def line(self, text: str, path: Path, mark: Mark) -> Any:
        """The value of text that is no list, no mapping and not in quotes."""
        try:
            self.loader = _Loader(text)
        except yaml.YAMLError as error:
            return self._syntax_problem(error, path, mark)
        tag = cast("Any", self.loader).resolve(yaml.ScalarNode, text, (True, False))
        return self.scalar(yaml.ScalarNode(tag if tag in _SCALAR_TAGS else _TAG + "str", text), path, mark)

    def place(self, node: yaml.Node) -> str:
        return self.source or f"{self.name}:{node.start_mark.line + 1}"

    def value(self, node: yaml.Node, path: Path, mark: Mark) -> Any:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MAX_VALUES} values", node.start_mark)
        if any(node is each for each in self.open):
            return self.tree.add_problem(path, mark, "a YAML alias contains itself", "write the value out")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path, mark)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            return self._tag_problem(node, path, mark)
        self.open.append(node)
        if isinstance(node, yaml.MappingNode):
            result: Any = self.tree.mapping(self.pairs(node, path, mark), path, mark.key, self.value)
        else:
            result = self.sequence(node, path, mark)
        self.open.pop()
        return result

    def pairs(self, node: yaml.MappingNode, path: Path, mark: Mark) -> list[tuple[Any, yaml.Node, str]]:
        """Key, value node and place of each entry. Keys of a merge (``<<``) yield to the mapping's own."""
        if id(node) not in self.own_keys:
            self.own_keys[id(node)] = {id(key_node) for key_node, _ in node.value}
            self.loader.flatten_mapping(node)
        own: list[tuple[Any, yaml.Node, str]] = []
        merged: dict[Any, tuple[Any, yaml.Node, str]] = {}
        for key_node, value_node in node.value:
            where = Mark(self.place(key_node), mark.key)
            if not isinstance(key_node, yaml.ScalarNode):
                message = "a key must be a single word, got a list or a mapping"
                self.tree.add_problem(path, where, message, "write one `key: value` line for each")
                continue
            key = self.plain_scalar(key_node, path, where)
            if key is BROKEN:
                continue
            if id(key_node) in self.own_keys[id(node)]:
                own.append((key, value_node, where.source))
            else:
                merged[key] = (key, value_node, where.source)
        taken = {key for key, _, _ in own}
        return [entry for key, entry in merged.items() if key not in taken] + own

    def sequence(self, node: yaml.Node, path: Path, mark: Mark) -> list[Any]:
        items: list[Any] = []
        for index, item in enumerate(node.value):
            child = (*path, str(index))
            self.tree.marks[child] = Mark(self.place(item), f"{mark.key}.{index}")
            items.append(self.value(item, child, self.tree.marks[child]))
        return [item for item in items if item is not BROKEN]

    def scalar(self, node: yaml.ScalarNode, path: Path, mark: Mark) -> Any:
        """The value of a scalar, with what it refers to in the environment."""
        if self.environ is None or "${" not in node.value or node.tag not in _SCALAR_TAGS:
            return self._note(node.value, self.plain_scalar(node, path, mark), path, mark)
        used: list[str] = []
        is_tagged = id(node) in self.loader.tagged
        try:
            parts = split_references(node.value)
            if len(parts) == 1 and isinstance(parts[0], Variable) and not is_tagged:
                return self.whole(parts[0], path, mark)
            text = self.joined(parts, path, mark, used)
        except ValueError as error:
            fix = "write ${NAME} or ${NAME:default}, or $${ for the text ${"
            return self.tree.add_problem(path, mark, f"{shown(str(error))} names no environment variable", fix)
        if text is BROKEN:
            return BROKEN
        if used:
            mark = Mark(f"environment {', '.join(dict.fromkeys(used))} ({mark.source})", mark.key)
        self.tree.marks[path] = replace(mark, text=node.value, outside=self.source is not None)
        return self.plain_scalar(yaml.ScalarNode(node.tag, text), path, mark) if is_tagged else text

    def _note(self, text: str, value: Any, path: Path, mark: Mark) -> Any:
        """Keeps the text of a value that is not text; returns the value."""
        if value is not BROKEN and not isinstance(value, str) and path:
            self.tree.marks[path] = replace(mark, text=text, outside=self.source is not None)
        return value

    def whole(self, variable: Variable, path: Path, mark: Mark) -> Any:
        """What a variable that is a whole value stands for."""
        assert self.environ is not None
        # As in a shell's ${NAME:-default}, an empty variable counts as none.
        if text := self.environ.get(variable.name):
            mark = Mark(f"environment {variable.name} ({mark.source})", mark.key)
            self.tree.marks[path] = mark
            return _Reader(self.tree, self.name, mark.source, None).read_from_outside(text, path, mark)
        if variable.default is None:
            return self._unset(variable, path, mark)
        reader = _Reader(self.tree, self.name, mark.source, self.environ)
        return reader.read_from_outside(variable.default, path, mark)

    def joined(self, parts: list[str | Variable], path: Path, mark: Mark, used: list[str]) -> Any:
        """The text made of parts; adds to ``used`` the names of variables whose value went into it."""
        assert self.environ is not None
        texts: list[str] = []
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
            elif text := self.environ.get(part.name):
                used.append(part.name)
                texts.append(text)
            elif part.default is None:
                return self._unset(part, path, mark)
            else:
                text = self.joined(split_references(part.default), path, mark, used)
                if text is BROKEN:
                    return BROKEN
                texts.append(text)
        return "".join(texts)

    def _unset(self, variable: Variable, path: Path, mark: Mark) -> Any:
        name = variable.name
        fix = f"set {name}, or write a default: ${{{name}:default}}; for the text itself write $${{{name}}}"
        return self.tree.add_problem(path, mark, f"the environment variable {name} has no value", fix)

    def plain_scalar(self, node: yaml.ScalarNode, path: Path, mark: Mark) -> Any:
        if node.tag not in _SCALAR_TAGS:
            return self._tag_problem(node, path, mark)
        try:
            return cast("Any", self.loader).construct_object(node)
        # What PyYAML's constructors raise for a tag that does not fit its text, such as `!!int x`.
        except (ValueError, LookupError, yaml.YAMLError):
            kind = node.tag.removeprefix(_TAG)
            return self.tree.add_problem(path, mark, f"{shown(node.value)} is not a valid {kind}", "correct the value")

    def _tag_problem(self, node: yaml.Node, path: Path, mark: Mark) -> Any:
        tag = node.tag.replace(_TAG, "!!")
        return self.tree.add_problem(path, mark, f"the YAML tag {shown(tag)} is not allowed", "write a plain value")

    def _syntax_problem(self, error: yaml.YAMLError, path: Path, mark: Mark) -> Any:
        if isinstance(error, yaml.MarkedYAMLError):
            reason = error.problem or error.context or "unreadable"
            if error.context and reason.startswith("but "):
                reason = f"{error.context}, {reason}"
            line = error.problem_mark.line + 1 if error.problem_mark else 1
        else:
            reason, line = f"{getattr(error, 'reason', error)}", 1
        where = mark if self.source else Mark(f"{self.name}:{line}", mark.key)
        return self.tree.add_problem(path, where, f"not valid YAML: {reason}", _syntax_fix(reason))


def _syntax_fix(reason: str) -> str:
    if "'\\t'" in reason:
        return "indent with spaces, not with tabs"
    if "mapping values" in reason or "flow mapping" in reason:
        return "check the indentation, and put quotes around a value that contains `: `, `{` or `}`"
    if "single document" in reason:
        return "keep one document; remove the `---` between the parts"
    if "special characters" in reason:
        return "save the file as plain UTF-8 text"
    if undefined := re.search(r"undefined alias '(.*)'", reason):
        return (
            f"write &{undefined[1]} before the value that it stands for, or put quotes around text that begins with *"
        )
    if reason.startswith("more than"):
        return "use fewer aliases: each counts as often as it is used"
    return "check the indentation and the punctuation; put quotes around text with special characters"


def render(config: Config) -> str:
    """The resolved configuration as YAML text; see :meth:`Config.to_yaml`."""
    lines: list[str] = []

    def emit(mapping: Mapping[Any, Any], path: Path) -> None:
        for key, value in mapping.items():
            child = (*path, str(key))
            is_section = is_mapping(value) and bool(value)
            head = f"{'  ' * len(path)}{dump_value(key)}:" + ("" if is_section else f" {dump_value(_escaped(value))}")
            source = config.sources.get(".".join(child), "default")
            # A file's name may hold anything; a comment must stay one printable line.
            lines.append(f"{head}  # {''.join(c if c.isprintable() else '?' for c in source)}")
            if is_section:
                emit(value, child)

    emit(config.model_dump(), ())
    return "\n".join(lines) + "\n"


def _escaped(value: Any) -> Any:
    """The value with ``$`` before all text that reading would take from the environment."""
    if isinstance(value, str):
        return escape(value)
    if is_mapping(value):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if is_list(value) else value


def dump_value(value: Any) -> str:
    """One value as YAML on one line."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        allow_unicode=True,
        sort_keys=False,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")
