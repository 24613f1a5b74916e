"""From what a configuration says to a reward function: short names, import paths, keyword arguments."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from chatlearn.errors import ChatLearnError, ConfigError
from chatlearn.rewards.base import RewardFunction, function_name, resolve

REWARDS: dict[str, str] = {
    "math": "chatlearn.rewards.math:MathReward",
    "exact_match": "chatlearn.rewards.format:ExactMatch",
    "contains": "chatlearn.rewards.format:Contains",
    "format": "chatlearn.rewards.format:RegexFormat",
    "length_penalty": "chatlearn.rewards.format:LengthPenalty",
    "overlong_penalty": "chatlearn.rewards.format:OverlongPenalty",
    "reasoning_gym": "chatlearn.rewards.reasoning_gym:ReasoningGymReward",
}
"""Short names of the rewards that come with chatlearn, and their import paths."""


def build_reward(spec: str | Callable[..., Any], kwargs: Mapping[str, Any] | None = None) -> RewardFunction:
    """Makes a reward function.

    Args:
        spec: a short name of :data:`REWARDS`, an import path ``"package.module:name"``, or the object itself. A class
            is constructed.
        kwargs: the class's arguments, or keyword arguments of each call of a function.

    Returns:
        ``fn(prompts, completions, **columns)``.

    Raises:
        ConfigError: there is no such name, path or keyword argument, or the class refuses its arguments.
    """
    kwargs = dict(kwargs or {})
    found: Any = resolve(_path(spec))
    if not inspect.isclass(found):
        if not kwargs:
            return found
        _check_keywords(found, kwargs, num_given=2)
        return functools.partial(found, **kwargs)
    _check_keywords(found, kwargs, num_given=0)
    made: Any = _made(found, kwargs)
    if not callable(made):
        raise ConfigError(
            f"the reward class {function_name(found)} makes objects that can't be called. Give it a method "
            "__call__(self, prompts, completions, **columns)."
        )
    return cast(RewardFunction, made)


def _made(found: Any, kwargs: Mapping[str, Any]) -> Any:
    try:
        return found(**kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, ChatLearnError):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise ConfigError(
            f"the reward {function_name(found)} can't be made with the keyword arguments {given or 'none'}: "
            f"{type(error).__name__}: {error}. Look at their types: in YAML, a number in quotes is a text."
        ) from error


def _path(spec: str | Callable[..., Any]) -> str | Callable[..., Any]:
    if not isinstance(spec, str) or spec in REWARDS:
        return REWARDS[spec] if isinstance(spec, str) else spec
    if ":" in spec or "." in spec or not spec:
        return spec
    near = difflib.get_close_matches(spec, REWARDS, n=1)
    raise ConfigError(
        f"there is no reward {spec!r}{f'; did you mean {near[0]!r}?' if near else '.'} There are {', '.join(REWARDS)}; "
        "a function of your own is named by its import path, 'package.module:name'."
    )


def _check_keywords(found: Any, kwargs: Mapping[str, Any], num_given: int) -> None:
    """Refuses arguments that the signature does not have, and a class's missing ones."""
    try:
        parameters = inspect.signature(found).parameters
    except ValueError:  # some functions written in C tell nothing about their arguments
        return
    named = [p for p in list(parameters.values())[num_given:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = list(parameters)[:num_given] if takes_any else []
    if unknown := [key for key in kwargs if key in taken or (key not in known and not takes_any)]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ConfigError(
            f"the reward {function_name(found)} has no keyword argument {unknown[0]!r}"
            f"{f'; did you mean {near[0]!r}?' if near else '.'} It has {', '.join(known) or 'none'}."
        )
    missing = [p.name for p in named if p.default is p.empty and p.name not in kwargs]
    if inspect.isclass(found) and missing:
        raise ConfigError(
            f"the reward {function_name(found)} needs the argument {missing[0]!r}. Set it under `kwargs`, or pass an "
            "object that is made already."
        )
