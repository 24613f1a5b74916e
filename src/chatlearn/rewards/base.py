"""The contract of reward functions, the one place that calls them, and import paths that name them.

A reward function is any callable ``fn(prompts, completions, **columns) -> list[float | None]``. ``prompts``
and ``completions`` are lists of B texts, every column a list of B values of the batch (``entry``, ``answer``,
…), and the result has B values, in order: a finite number that float32 can hold, or ``None`` where a sample can't be
scored.
"""

from __future__ import annotations

import bdb
import difflib
import functools
import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias, cast

from chatlearn.errors import ConfigError, DataError
from chatlearn.guards import is_instance, is_mapping, kind_of

_LARGEST = (2 - 2**-23) * 2.0**127
"""Of float32 (IEEE 754)."""

RewardFunction: TypeAlias = Callable[..., Sequence[float | None]]
"""``fn(prompts, completions, **columns)``, one number or ``None`` per sample."""


def score(
    fn: RewardFunction,
    prompts: list[str],
    completions: list[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    names: Sequence[str] | None = None,
) -> list[float | None]:
    """Calls a reward function and checks what it returns.

    The function gets only those columns that its signature names, or all of them if it takes ``**kwargs``.

    Args:
        fn: the reward function.
        prompts: B prompt texts.
        completions: B completion texts, in the order of the prompts.
        columns: further per-sample values by name, B each.
        names: B words for the samples, for errors; left out, ``sample 0``, ``sample 1``, …

    Returns:
        B values, each a finite ``float``, or ``None`` where the function can't score the sample.

    Raises:
        DataError: the function needs a column that the batch lacks, or its result isn't B values, each a
            finite number or ``None``.
    """
    name = function_name(fn)
    result = fn(prompts, completions, **_accepted(fn, name, columns or {}))
    values = _as_list(result, name)
    if len(values) != len(completions):
        raise DataError(
            f"reward function {name}: expected {len(completions)} values, one per completion, got "
            f"{len(values)}. Return a value for each sample, in order; use None for one that can't be scored."
        )
    called = names or [f"sample {index}" for index in range(len(values))]
    return [_checked(value, name, sample) for value, sample in zip(values, called, strict=True)]


def find_failing(
    fn: RewardFunction,
    prompts: list[str],
    completions: list[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    max_seconds: float = 10.0,
) -> tuple[int, Exception] | None:
    """The first sample for which a reward function raises when it gets that sample alone.

    Args:
        fn: a function that has raised for these samples together.
        prompts: B prompt texts.
        completions: B completion texts.
        columns: further per-sample values by name, as for :func:`score`.
        max_seconds: no further sample is tried after so long.

    Returns:
        Its index, and what the function raised; ``None`` where no sample alone makes it raise.
    """
    name, deadline = function_name(fn), time.monotonic() + max_seconds
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if time.monotonic() > deadline:
            return None
        accepted = _accepted(fn, name, {key: _row(column, index) for key, column in columns.items()})
        try:
            fn([prompt], [completion], **accepted)
        except Exception as error:
            if isinstance(error, bdb.BdbQuit):
                raise
            return index, error
    return None


def _row(column: Any, index: int) -> Any:
    if is_mapping(column):
        return {key: _row(part, index) for key, part in column.items()}
    return None if column is None else column[index : index + 1]


def resolve(spec: str | Callable[..., Any]) -> RewardFunction:
    """Turns what a config says into a reward function.

    Args:
        spec: the function itself, or its import path ``"package.module:name"``.

    Returns:
        The callable.

    Raises:
        ConfigError: the path is malformed, its module can't be imported, or what it names isn't callable.
    """
    if not isinstance(spec, str):
        if not callable(spec):
            raise ConfigError(
                f"a reward function must be a callable or an import path 'package.module:name', got {spec!r}."
            )
        return cast(RewardFunction, spec)
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigError(
            f"reward function {spec!r}: expected an import path of the form 'package.module:name', "
            "for example 'my_rewards:length_penalty'."
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"reward function {spec!r}: module {module_name!r} can't be imported ({error}). "
            "Check the spelling, and that the module's folder is on PYTHONPATH or its package is installed."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"reward function {spec!r}: {function_name(found)} has no attribute {part!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"reward function {spec!r}: is of type {type(found).__name__}, which can't be called. "
            "Name a function, or an object with __call__."
        )
    return cast(RewardFunction, found)


def function_name(fn: Any) -> str:
    """How errors name a function: its module and qualified name, or its class for a callable object."""
    if isinstance(fn, functools.partial):
        return function_name(cast("functools.partial[Any]", fn).func)
    named = fn if hasattr(fn, "__qualname__") or inspect.ismodule(fn) else kind_of(fn)
    if inspect.ismodule(named):
        return f"module {named.__name__!r}"
    return f"{named.__module__}.{named.__qualname__}"


def _accepted(fn: RewardFunction, name: str, columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The columns to pass: those the signature names, or all for ``**kwargs``; never the first two."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # some functions written in C tell nothing about their arguments
        return {}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # prompts and completions go in by position, whatever the function calls them
    taken = {p.name for p in positional[:2]} | {"prompts", "completions"}
    if isinstance(fn, functools.partial):  # what the user has set is not a column's to change
        taken |= fn.keywords.keys()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in taken]
    missing = [p.name for p in named if p.default is p.empty and p.name not in columns]
    if missing:
        raise DataError(
            f"reward function {name}: the batch has no column {', '.join(map(repr, missing))} "
            f"(it has {', '.join(map(repr, sorted(columns))) or 'none'}). "
            "Add it to every sample of the data set, or give the argument a default."
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {key: value for key, value in columns.items() if key not in taken}
    return {p.name: columns[p.name] for p in named if p.name in columns}


def _as_list(result: Any, name: str) -> list[Any]:
    # By attribute and not by type: arrays and tensors are known without importing their libraries.
    if hasattr(result, "tolist") and getattr(result, "ndim", None) == 1:
        return result.tolist()
    if is_instance(result, Sequence) and not isinstance(result, str | bytes):
        return list(result)
    shape = getattr(result, "shape", None)
    got = type(result).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    raise DataError(
        f"reward function {name}: expected a list (or a 1-d array or tensor) with one number or None per "
        f"sample, got {got}."
    )


def _checked(value: Any, name: str, sample: str) -> float | None:
    if value is None:
        return None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a 0-d array or tensor
        value = value.item()
    if not isinstance(value, Real) or not fits_float32(value):
        raise DataError(
            f"reward function {name}: {sample} got {shown(value)}, expected a finite number, or None if the sample "
            "can't be scored; rewards are float32, so up to 3.4e38."
        )
    return float(value)


def fits_float32(value: Any) -> bool:
    """Whether a real number is finite, and stays so as float32."""
    return -_LARGEST <= value <= _LARGEST


def shown(value: Any) -> str:
    """A value as an error shows it; Python writes no integers of thousands of digits."""
    return hex(value)[:20] + "…" if isinstance(value, int) and abs(value) > 10**40 else repr(value)
