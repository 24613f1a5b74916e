"""Two lines of one sample, compared bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from chatlearn.guards import is_dict, is_list

_DESCRIBED = re.compile(r"(torch\.)?\w+ (\[\d+(, \d+)*\]|without plain numbers)")


def differences(logged: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, str]:
    """What is not the same in two lines of one sample.

    Numbers are the same where they are written alike: 0.0 is not -0.0, and 1 is not 1.0.

    Args:
        logged: a line as :func:`~chatlearn.observe.samples.sample_line` writes it, read.
        again: the same sample, made once more.

    Returns:
        Field -> its first difference in words, with its place (``logprobs[3]``); in the order of the fields.
    """
    names = [name for name in dict.fromkeys([*logged, *again]) if name != "non_finite"]
    found = {name: next(_differing((name,), logged, again, logged, again), "") for name in names}
    return {name: text for name, text in found.items() if text}


def only_described(line: Mapping[str, Any]) -> list[str]:
    """The fields of a line whose numbers were too many to be written out."""
    return [name for name, value in line.items() if isinstance(value, str) and _DESCRIBED.fullmatch(value)]


_Place = tuple[str | int, ...]


def _differing(
    place: _Place, before: Any, after: Any, old_line: Mapping[str, Any], new_line: Mapping[str, Any]
) -> Iterator[str]:
    """Words for each difference below a place; ``before`` and ``after`` hold its last key."""
    key, shown = place[-1], _shown(place)
    if is_dict(before) and is_dict(after) and (key not in before or key not in after):
        yield f"{shown} is not in the log" if key not in before else f"{shown} is in the log only"
        return
    old, new = before[key], after[key]
    if is_dict(old) and is_dict(new):
        for name in dict.fromkeys([*old, *new]):
            yield from _differing((*place, name), old, new, old_line, new_line)
    elif is_list(old) and is_list(new):
        for index in range(min(len(old), len(new))):
            yield from _differing((*place, index), old, new, old_line, new_line)
        if len(old) != len(new):
            yield f"{shown} has {len(new)} entries, logged are {len(old)}"
    elif (then := _text(old, place, old_line)) != (now := _text(new, place, new_line)):
        yield f"{shown} is {_short(now)}, logged is {_short(then)}"


def _text(value: Any, place: _Place, line: Mapping[str, Any]) -> str:
    """A value as it is written; one that JSON does not have by its name (``nan``, ``inf``)."""
    if value is None:
        return line.get("non_finite", {}).get(".".join(map(str, place)), "null")
    return json.dumps(value, ensure_ascii=False)


def _shown(place: _Place) -> str:
    name, *rest = place
    return str(name) + "".join(f"[{part}]" for part in rest)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}…{text[-15:]}"
