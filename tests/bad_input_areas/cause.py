"""One entry of the table of bad inputs: what a user gets wrong, and the words that the error must contain.

Words are held against the message as the documentation shows it: without folders, and with ``train.py:3`` for the third
line of the function that stands in for the user's program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_input_areas.program import program

from chatlearn import ChatLearnError, ConfigError

Words = str | tuple[str, ...]
"""What a message must contain: a text, or several."""


@dataclass(frozen=True)
class Cause:
    """Something that a user gets wrong.

    Attributes:
        sentence: what is wrong, for the documentation.
        kind: of the error.
        says: words that tell what is wrong.
        at: words that tell the place.
        fix: words that tell the way out.
        act: what the user does; it raises the error.
    """

    sentence: str
    kind: type[ChatLearnError]
    says: Words
    at: Words
    fix: Words
    act: Callable[[], Any]

    @property
    def words(self) -> tuple[str, ...]:
        """All words that the message must contain."""
        return tuple(word for words in (self.says, self.at, self.fix) for word in _listed(words))


class Causes(list[Cause]):
    """Causes in the order of the documentation, with three ways to add one."""

    def cause(self, kind: type[ChatLearnError], says: Words, at: Words, fix: Words) -> Callable[[Any], Any]:
        """Adds the decorated function; its docstring is the sentence."""

        def add(act: Callable[[], Any]) -> Callable[[], Any]:
            self.append(Cause(inspect.cleandoc(act.__doc__ or ""), kind, says, at, fix, act))
            return act

        return add

    def yaml(self, sentence: str, text: str | bytes, says: Words, at: Words, fix: Words) -> None:
        """Adds a program whose configuration ``my.yaml`` has this text."""

        def act() -> None:
            Path("my.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
            program(config="my.yaml")

        self.append(Cause(sentence, ConfigError, says, at, fix, act))

    def command_line(self, sentence: str, words: str, says: Words, at: Words, fix: Words) -> None:
        """Adds a program that is called as ``python train.py WORDS``."""
        self.append(Cause(sentence, ConfigError, says, at, fix, lambda: program(*words.split())))


def _listed(words: Words) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else words
