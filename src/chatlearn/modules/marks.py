"""The mark that makes a step of a method, and what it says about the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from chatlearn.errors import ModuleError

F = TypeVar("F", bound=Callable[..., Any])


@overload
def step(function: F) -> F: ...


@overload
def step(
    *,
    expands: int | bool | None = None,
    filters: bool = False,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] | None = None,
    borrows: bool = False,
) -> Callable[[F], F]: ...


def step(
    function: F | None = None,
    *,
    expands: int | bool | None = None,
    filters: bool = False,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] | None = None,
    borrows: bool = False,
) -> F | Callable[[F], F]:
    """Marks a method as a step that flows can call, beside the three that are steps by name.

    Args:
        function: the method, where the mark stands alone: ``@chatlearn.step``.
        expands: the step makes several rows of one: a number (of neighbouring rows for each input row, in order), or
            ``True`` for any number; then its output holds ``source_rows``, the input row that each new row comes from.
        filters: the step may drop rows; its output holds ``source_rows``, the input rows that are left.
        reads: keys that this step needs, where they are not those of the class.
        writes: keys that it adds to its input's, where they are not those of the class.
        borrows: the step neither changes nor keeps the lists, dicts and tuples that stand for samples in its input, so
            it gets them as they are; any other gets copies. Records of hundreds of entries are worth it.

    Sample and group ids are carried along, and ``source_rows`` (ints or an integer tensor ``[rows]``) is taken out of
    the output. Values from before the step that are read together with later ones are repeated or dropped alike.

    Example::

        class Judge(chatlearn.BaseModule):
            @chatlearn.step(filters=True)
            def keep_good(self, data):
                good = (data["score"] > 0).nonzero().flatten()
                return {"answer": [data["answer"][i] for i in good], "source_rows": good}

    Raises:
        ModuleError: ``expands`` is no number from 1 on and not ``True``, or a step both expands and filters.
    """
    if expands is not None and expands is not True and (type(expands) is not int or expands < 1):
        raise ModuleError(f"@step(expands={expands!r}): give the number of rows that one becomes, or True for any.")
    if expands is not None and filters:
        raise ModuleError("@step: a step expands or filters; expands=True allows no rows for some input rows too.")

    def mark(function: F) -> F:
        marks: dict[str, Any] = {
            "_is_chatlearn_step": True,
            "_chatlearn_expands": expands,
            "_chatlearn_filters": filters,
        }
        marks["_chatlearn_reads"] = None if reads is None else frozenset(reads)
        marks["_chatlearn_borrows"] = borrows
        marks["_chatlearn_writes"] = None if writes is None else frozenset(writes)
        for name, value in marks.items():
            setattr(function, name, value)
        return function

    return mark if function is None else mark(function)
