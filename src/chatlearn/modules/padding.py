"""Padding rules that a module declares, checked where they are declared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatlearn.errors import DataError, ModuleError
from chatlearn.guards import is_instance, is_mapping

if TYPE_CHECKING:
    from chatlearn.data.padding import Padding


def check_declared(owner: str, rules: object) -> None:
    """Raises ModuleError where the attribute ``padding`` of a class or a module is no mapping."""
    if not is_mapping(rules):
        raise ModuleError(
            f"{owner}.padding is {type(rules).__name__}, but it holds the module's padding rules. Give a dict from "
            f'keys to rules, such as padding = {{"tokens": Padding(0, "left")}}, or rename the attribute.'
        )


def declared_rule(module: str, key: str, value: float, side: str, *, is_late: bool) -> Padding:
    """The rule of a call of ``add_padding_config``.

    Args:
        module: its name, for errors.
        key: of the batch.
        value: what padding holds.
        side: ``right`` or ``left``.
        is_late: the rules of all modules have been put together already.

    Raises:
        DataError: an unknown side, or a value that is no number.
        ModuleError: the key is no string, or the call is late.
    """
    from chatlearn.data.padding import Padding

    if not is_instance(key, str):
        raise ModuleError(f"{module}.add_padding_config: the key is a string, got {key!r}.")
    if is_late:
        raise ModuleError(
            f"{module}.add_padding_config({key!r}, …) is called after setup(), when the rules of all modules have been "
            f"put together. Call it in setup(), or declare `padding` on the class."
        )
    try:
        return Padding(value, side)
    except DataError as error:
        raise DataError(f"{module}.add_padding_config({key!r}, …): {error}") from None
