"""What a step's signature says about its arguments (DESIGN: the programming contract of modules)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

RUN_PARAMETERS = ("iteration", "train_info", "is_eval")
"""Parameters that chatlearn fills in where a signature has them."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class StepSignature:
    """The parameters of a step, sorted by who fills them.

    Attributes:
        positional: names of all positional parameters, in order, ``self`` apart.
        data: the positional parameters without default, ``RUN_PARAMETERS`` apart.
        variadic: there is a ``*args``; it takes further data, each value separately.
        named: every name that may be given as a keyword.
        takes_any_keyword: there is a ``**kwargs``.
        required: keyword-only parameters without default.
    """

    positional: tuple[str, ...]
    data: tuple[str, ...]
    variadic: bool
    named: frozenset[str]
    takes_any_keyword: bool
    required: tuple[str, ...]
    num_positional_only: int

    @property
    def merges(self) -> bool:
        """True where several inputs become one dict."""
        return len(self.data) == 1 and not self.variadic

    def run_parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of ``values`` that the signature has a place for."""
        return {name: value for name, value in values.items() if name in self.named}

    def call(self, function: Callable[..., Any], module: Any, arguments: Mapping[str, Any]) -> Any:
        """Calls ``function(module, …)`` with arguments given by name (``*0``, ``*1`` … for variadic data)."""
        variadic = [value for name, value in arguments.items() if name.startswith("*")]
        count = len(self.positional) if variadic else self.num_positional_only
        positional = [arguments[name] for name in self.positional[:count] if name in arguments]
        keywords = {
            name: value
            for name, value in arguments.items()
            if name not in self.positional[:count] and not name.startswith("*")
        }
        return function(module, *positional, *variadic, **keywords)


@cache
def step_signature(function: Callable[..., Any]) -> StepSignature:
    """Reads the signature of a step, ``self`` apart (decorators that use ``functools.wraps`` are looked through)."""
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].kind in _POSITIONAL:
        parameters = parameters[1:]
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    return StepSignature(
        positional=tuple(p.name for p in positional),
        data=tuple(p.name for p in positional if p.default is p.empty and p.name not in RUN_PARAMETERS),
        variadic=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        named=frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
        takes_any_keyword=any(p.kind is p.VAR_KEYWORD for p in parameters),
        required=tuple(
            p.name
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in RUN_PARAMETERS
        ),
        num_positional_only=sum(p.kind is p.POSITIONAL_ONLY for p in positional),
    )
