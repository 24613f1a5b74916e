"""Lists and dicts of a loaded configuration: ordinary ones to read, an error to change.

A copy (``copy.copy``, ``copy.deepcopy``, pickling) is plain again, so whoever takes one may do with it as he likes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

from chatlearn.errors import ConfigError
from chatlearn.guards import is_dict, is_list


def refusal(key: str) -> ConfigError:
    """The error for an attempt to change what stands at a key."""
    return ConfigError(
        f"{key}: a configuration can't be changed once it is loaded. Give the value to chatlearn.init(), as "
        f"{key}=… on the command line, or in a file or a dict."
    )


def frozen(value: Any, key: str) -> Any:
    """The value with all lists and dicts in it replaced by frozen ones; ``key`` is its dotted key."""
    if is_dict(value):
        return FrozenDict({name: frozen(item, f"{key}.{name}") for name, item in value.items()}, key)
    if is_list(value):
        return FrozenList([frozen(item, f"{key}.{index}") for index, item in enumerate(value)], key)
    return value


class FrozenDict(dict[Any, Any]):
    """A dict that can't be changed.

    Raises:
        ConfigError: From every method that would change it.
    """

    __slots__ = ("_key",)

    def __init__(self, values: dict[Any, Any], key: str) -> None:
        super().__init__(values)
        self._key = key

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise refusal(self._key)

    if not TYPE_CHECKING:
        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = setdefault = update = _refuse


class FrozenList(list[Any]):
    """A list that can't be changed.

    Raises:
        ConfigError: From every method that would change it.
    """

    __slots__ = ("_key",)

    def __init__(self, values: list[Any], key: str) -> None:
        super().__init__(values)
        self._key = key

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return copy.deepcopy(list(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return list, (list(self),)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise refusal(self._key)

    if not TYPE_CHECKING:
        __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
        append = clear = extend = insert = pop = remove = reverse = sort = _refuse
