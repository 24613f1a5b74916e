"""Padding rules: what stands beyond the end of shorter values when batches of different widths are merged."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chatlearn.errors import DataError, ModuleError
from chatlearn.guards import is_instance

if TYPE_CHECKING:
    import torch

SIDES = ("left", "right")


@dataclass(frozen=True)
class Padding:
    """How the values of one key become equally wide.

    Attributes:
        value: what padding holds. Arrays of strings are filled up with empty ones, arrays of objects with ``None``.
        side: ``right`` or ``left``: where padding goes, in each dimension beyond the first.

    Raises:
        DataError: an unknown side, or a value that is no number.
    """

    value: float = 0
    side: str = "right"

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise DataError(f"Padding(side={self.side!r}): padding goes 'left' or 'right'.")
        if not isinstance(self.value, numbers.Real):
            raise DataError(f"Padding(value={self.value!r}): padding holds a number.")


def padding_rules(declared: Iterable[tuple[str, Mapping[str, Padding]]]) -> dict[str, Padding]:
    """The rules of all modules of a run in one dict; keys of nested dicts are dotted paths such as ``"a.b"``.

    Args:
        declared: pairs of a module's name and its rules.

    Raises:
        ModuleError: a rule is no :class:`Padding`, or two modules have different rules for one key.
    """
    rules: dict[str, Padding] = {}
    owners: dict[str, str] = {}
    for module, own in declared:
        for key, rule in own.items():
            if not is_instance(rule, Padding):
                raise ModuleError(
                    f"{module}: the padding of {key!r} is {rule!r}. Give a rule such as "
                    f'padding = {{"{key}": Padding(0, "left")}} (from chatlearn.data.padding).'
                )
            if rules.setdefault(key, rule) != rule:
                raise ModuleError(
                    f"{owners[key]} and {module} have different padding rules for {key!r}: {rules[key]} and {rule}. "
                    f"A key has one rule in all of a run: make them equal, or leave one out."
                )
            owners.setdefault(key, module)
    return rules


def widened(key: str, values: Sequence[Any], rule: Padding) -> list[Any]:
    """Tensors, or arrays, of N dimensions with equal sizes beyond the first, padded where they are smaller.

    Raises:
        DataError: the dtype can't hold the rule's value.
    """
    widths = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return [_widened(key, value, widths, rule) for value in values]


def _widened(key: str, value: torch.Tensor | np.ndarray, widths: list[int], rule: Padding) -> Any:
    missing = [width - size for width, size in zip(widths, value.shape[1:], strict=True)]
    amounts = [(n, 0) if rule.side == "left" else (0, n) for n in missing]
    if not any(missing):
        return value
    if isinstance(value, np.ndarray):
        return _widened_array(key, value, amounts, rule)
    return _widened_tensor(key, value, amounts, rule)


def _widened_tensor(key: str, value: torch.Tensor, amounts: list[tuple[int, int]], rule: Padding) -> torch.Tensor:
    import torch

    if not value.dtype.is_floating_point and not value.dtype.is_complex:
        _check_integer(key, value.dtype, rule)
    flat = [n for before_and_after in reversed(amounts) for n in before_and_after]
    return torch.nn.functional.pad(value, flat, value=rule.value)


def _widened_array(key: str, value: np.ndarray, amounts: list[tuple[int, int]], rule: Padding) -> np.ndarray:
    filling: Any = rule.value
    if value.dtype.kind in "iub":
        _check_integer(key, value.dtype, rule)
    elif value.dtype.kind not in "fc":
        filling = None if value.dtype.kind == "O" else np.zeros((), value.dtype)
    shape = (len(value), *(size + sum(pair) for size, pair in zip(value.shape[1:], amounts, strict=True)))
    result = np.full(shape, filling, dtype=value.dtype)
    places = [slice(before, before + size) for size, (before, _) in zip(value.shape[1:], amounts, strict=True)]
    result[(slice(None), *places)] = value
    return result


def _check_integer(key: str, dtype: Any, rule: Padding) -> None:
    if not float(rule.value).is_integer():
        raise DataError(
            f"{key!r} is {str(dtype).removeprefix('torch.')}, which can't hold the padding value {rule.value}. Pad it "
            f"with a whole number."
        )
