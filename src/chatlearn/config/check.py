"""Everything that is wrong with a configuration, found at once.

:func:`validate` checks what a configuration says by itself. What depends on the program (its modules and
their own settings) is checked by :func:`check_models` and :func:`check_args`, whose problems the engine
raises together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from chatlearn.config.problem import Problem, raise_problems
from chatlearn.config.schema import Config, Path
from chatlearn.config.tree import BROKEN, Mark, Tree, sources_of, written_of
from chatlearn.config.upstream import notes
from chatlearn.config.values import name_groups, split_names
from chatlearn.config.wording import nearest, path_in_data, problems_from, unknown_key
from chatlearn.guards import is_list, is_mapping

__all__ = ["Problem", "check_args", "check_models", "notes", "raise_problems", "source_of", "validate"]


def validate(tree: Tree, into: Config | None = None) -> Config:
    """The configuration that a tree describes.

    Args:
        tree: What was given, with the problems of reading it.
        into: The object to fill: one under construction. A new one is made if it is None.

    Raises:
        ConfigError: Lists all problems: those of reading, unknown keys, wrong types, and what does not fit.
    """
    config = Config.__new__(Config) if into is None else into
    problems = [each for _, each in tree.problems]
    if tree.data is BROKEN:
        raise_problems(problems)
    error = _fill(config, tree)
    if error is not None and _keep_texts(tree, error):
        error = _fill(config, tree)
    if error is not None:
        problems += problems_from(error.errors(include_url=False), Config, tree.data, tree.mark_at)
    raise_problems(problems + _unknown_names(tree))
    config._sources.update(sources_of(config, tree))  # pyright: ignore[reportPrivateUsage]
    config._written.update(written_of(tree))  # pyright: ignore[reportPrivateUsage]
    return config


def _fill(config: Config, tree: Tree) -> ValidationError | None:
    try:
        # Not `Config(...)`: that calls `validate`.
        BaseModel.__init__(config, **tree.data)
    except ValidationError as error:
        return error
    return None


def _keep_texts(tree: Tree, error: ValidationError) -> bool:
    """Makes text again of what came from outside, looked like something else and stands where text is expected.

    Returns:
        Whether there was any.
    """
    errors = error.errors(include_url=False)
    expected = {path_in_data(each, tree.data) for each in errors if each["type"] == "string_type"}
    found = False
    for path in expected:
        # Of a list and its items, both of which may be text, the items.
        is_around_another = any(other != path and other[: len(path)] == path for other in expected)
        if (mark := tree.marks.get(path)) and mark.outside and mark.text is not None and not is_around_another:
            tree.replace(path, mark.text)
            found = True
    return found


def check_args(name: str, args_model: type[BaseModel] | None, config: Config) -> list[Problem]:
    """Checks ``models.<name>.args`` against a module class's ``Args`` model.

    Keys that the model does not have are problems, unless it sets ``extra`` itself.

    Args:
        name: Name of the module.
        args_model: The class's ``Args``, or None if it has none; then nothing is checked.
        config: The configuration of the run.

    Returns:
        The problems, each with the place of the setting.
    """
    if args_model is None:
        return []
    prefix = ("models", name, "args")
    args = config.models[name].args if name in config.models else {}

    def mark_at(path: Path) -> Mark:
        key = ".".join(path)
        text, outside = config.written.get(key, (None, False))
        return Mark(source_of(config, path), key, text, outside)

    problems = _unknown_args(args_model, args, prefix, mark_at)
    try:
        args_model.model_validate(args)
    except ValidationError as error:
        problems += problems_from(error.errors(include_url=False), args_model, args, mark_at, prefix)
    return problems


def check_models(
    config: Config, module_names: Collection[str], trained: Collection[str] | None = None
) -> tuple[list[Problem], list[str]]:
    """Compares the modules of a program with the entries under ``models``.

    Args:
        config: The configuration of the run.
        module_names: Names of all modules that a flow uses.
        trained: Names of those whose ``train_step`` a flow calls, to hold ``trainable`` against; or None.

    Returns:
        Problems (a module without an entry while others have one) and notes (an entry that no module uses, an
        entry that says ``trainable`` of another module than the flows train, a key without effect).
    """
    unused = [name for name in config.models if name not in module_names]
    missing = [name for name in module_names if name not in config.models] if config.models else []
    lines = [
        f"{source_of(config, ('models', name))}  models.{name}: no flow uses a module of this name" for name in unused
    ]
    if trained is not None:
        lines += _not_trained(config, [name for name in config.models if name not in (*unused, *trained)])
    return [_without_entry(config, name, unused) for name in missing], lines + notes(config)


def _without_entry(config: Config, name: str, unused: list[str]) -> Problem:
    guess = nearest(name, unused or config.models)
    hint = f"; did you mean it by the entry `{guess}`?" if guess else ""
    fix = f"rename the entry `{guess}` or add `{name}:` under models" if guess else f"add `{name}:` under models"
    message = f"the module `{name}` has no entry under models, while others have one{hint}"
    return Problem(source_of(config, ("models",)), f"models.{name}", message, fix)


def _not_trained(config: Config, names: Iterable[str]) -> list[str]:
    return [
        f"{source_of(config, ('models', name, 'trainable'))}  models.{name}.trainable: no flow trains this module"
        for name in names
        if config.models[name].trainable
    ]


_NAMING: dict[str, Callable[[Any], Any]] = {
    "export": split_names,
    "colocation": lambda value: _flat(name_groups(value)),
}
"""Keys of ``runtime`` whose values name models, and how to get at the names."""


def _unknown_names(tree: Tree) -> list[Problem]:
    # Looks at the tree, not at a Config, so that it also speaks up beside other problems.
    models, runtime = tree.data.get("models"), tree.data.get("runtime")
    if tree.partial or not is_mapping(models) or not models or not is_mapping(runtime):
        return []
    problems: list[Problem] = []
    for key, names_of in _NAMING.items():
        names, mark = names_of(runtime.get(key)), tree.mark_at(("runtime", key))
        known = names if is_list(names) else []  # anything else is reported as a wrong type
        unknown = [name for name in known if isinstance(name, str) and name not in models]
        problems += [Problem(mark.source, mark.key, *_unknown_model(name, models)) for name in unknown]
    return problems


def _flat(groups: Any) -> Any:
    """The names in all groups, as far as they are groups."""
    if not is_list(groups):
        return []
    return [name for group in groups if is_list(group) for name in group]


def _unknown_model(name: str, models: Iterable[str]) -> tuple[str, str]:
    guess = nearest(name, models)
    hint = f"; did you mean `{guess}`?" if guess else ""
    return f"`{name}` is no entry under models{hint}", f"use one of: {', '.join(models)}"


def _unknown_args(model: type[BaseModel], data: Mapping[Any, Any], prefix: Path, mark_at: Any) -> list[Problem]:
    """Keys that pydantic would drop without a word, through nested models."""
    problems: list[Problem] = []
    known = {name: field for key, field in model.model_fields.items() for name in (key, field.alias or key)}
    for key, value in data.items():
        path = (*prefix, str(key))
        field = known.get(key)
        if field is None and "extra" not in model.model_config:
            mark = mark_at(path)
            problems.append(Problem(mark.source, mark.key, *unknown_key(str(key), known)))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel) and is_mapping(value):
            problems += _unknown_args(inner, value, path, mark_at)
    return problems


def source_of(config: Config, path: Path) -> str:
    """Source of the value at ``path``, or of the nearest section around it."""
    keys = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((config.sources[key] for key in keys if config.sources.get(key, "default") != "default"), "defaults")
