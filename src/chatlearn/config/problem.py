"""One thing that is wrong with a configuration, and the error that lists all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chatlearn.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: Its place: "ppo.yaml:12", "command line", "environment SEED (ppo.yaml:12)", "dict", "defaults".
        key: Dotted path of the key as the user spelled it; empty where the problem is not about a key.
        message: What was expected and what was found.
        fix: What to do about it; empty where the message says it.
    """

    where: str
    key: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.where}  {self.key}" if self.key else self.where
        fix = f"\n     Fix: {self.fix}." if self.fix else ""
        return f"{place}: {self.message}{fix}"


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """The error that lists all problems, numbered, in the order of their lines."""
    ordered = sorted(dict.fromkeys(problems), key=_line)
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    lines = [f"{number:>2}. {each}" for number, each in enumerate(ordered, start=1)]
    return ConfigError("\n".join([f"{count} in the configuration:", *lines]))


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raises one error that lists all problems; does nothing if there are none.

    Raises:
        ConfigError: If there is any problem.
    """
    found = list(problems)
    if found:
        # Validation errors of pydantic that may be in flight repeat the same in words of their own.
        raise config_error(found) from None


def _line(problem: Problem) -> tuple[bool, str, int]:
    file, _, number = problem.where.removesuffix(")").rpartition(":")
    return (False, file.rpartition("(")[2].strip(), int(number)) if number.isdecimal() and file else (True, "", 0)
