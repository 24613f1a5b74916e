"""Padding rules: what stands beyond the end of shorter values when batches of different widths are merged."""

from __future__ import annotations

import math
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
        try:
            float(self.value)
        except OverflowError:
            raise DataError("Padding(value=…): the number is too large for any dtype.") from None


def padding_rules(declared: Iterable[tuple[str, Mapping[str, Padding]]]) -> dict[str, Padding]:
    """The rules of all modules of a run in one dict; keys of nested dicts are dotted paths such as ``"a.b"``.

    Args:
        declared: pairs of a module's name and its rules.

    Raises:
        ModuleError: a rule is no :class:`Padding`, a key is no text, or two modules have different rules for one key.
    """
    rules: dict[str, Padding] = {}
    owners: dict[str, str] = {}
    for module, own in declared:
        for key, rule in own.items():
            if not is_instance(key, str):
                raise ModuleError(f"{module}: the padding of {key!r}: keys of batches are text, such as 'a' or 'a.b'.")
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
    if not any(missing):
        return value
    shape = (len(value), *widths)
    result: Any = (
        np.full(shape, _filling(key, value.dtype, rule), dtype=value.dtype)
        if isinstance(value, np.ndarray)
        else value.new_full(shape, check_holds(repr(key), value.dtype, rule.value))
    )
    starts = missing if rule.side == "left" else [0] * len(missing)
    places = [slice(start, start + size) for start, size in zip(starts, value.shape[1:], strict=True)]
    result[(slice(None), *places)] = value
    return result


def _filling(key: str, dtype: np.dtype, rule: Padding) -> Any:
    if dtype.kind in "iubfc":
        return check_holds(repr(key), dtype, rule.value)
    return None if dtype.kind == "O" else np.zeros((), dtype)


def check_holds(what: str, dtype: torch.dtype | np.dtype, value: float) -> float:
    """The padding value as a number of Python, for a dtype that can hold it.

    Args:
        what: is padded, for the error.
        dtype: of a tensor or an array of numbers.
        value: of the padding. NaN fits into every floating dtype, infinity into those whose name does
            not end with ``fn`` or ``fnuz`` (finite numbers only).

    Raises:
        DataError: it is beyond the dtype's range, or no whole number where the dtype holds these only.
    """
    name = str(dtype).removeprefix("torch.")
    lowest, highest, whole = _range_of(dtype)
    number = float(value)
    if whole and not number.is_integer():
        problem = "Pad it with a whole number."
    elif (whole or math.isfinite(number) or (math.isinf(number) and name.endswith(("fn", "fnuz")))) and not lowest <= (
        int(value) if whole else number
    ) <= highest:
        problem = f"It holds {lowest} to {highest}: choose another padding value, or another dtype."
    else:
        return int(value) if whole else number
    raise DataError(f"{what} is {name}, which can't hold the padding value {value}. {problem}")


def _range_of(dtype: torch.dtype | np.dtype) -> tuple[float, float, bool]:
    """The lowest and highest number of a dtype, and whether it holds whole numbers only."""
    if isinstance(dtype, np.dtype):
        if dtype.kind == "b":
            return 0, 1, True
        limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
        return (limits.min, limits.max, True) if dtype.kind in "iu" else (float(limits.min), float(limits.max), False)
    import torch

    if dtype is torch.bool:
        return 0, 1, True
    if dtype.is_floating_point or dtype.is_complex:
        return torch.finfo(dtype).min, torch.finfo(dtype).max, False
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max, True
