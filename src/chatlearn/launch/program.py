"""The program that a cluster runs: the words behind ``--``, and the settings that tell it where the cluster is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from chatlearn.errors import ConfigError

EXAMPLE = "chatlearn run ppo -c my.yaml"

_OURS = ("runtime_env.backend", "runtime_env.address")


def check_program(words: Sequence[str], command: str) -> list[str]:
    """The words of a program, checked.

    Args:
        words: as the shell gave them.
        command: the words before them, for the text of an error.

    Raises:
        ConfigError: there are none, or they set what the cluster decides.
    """
    if not words:
        raise ConfigError(f"The program is missing. It stands behind --, as in: {command} -- {EXAMPLE}")
    if words[0].endswith(".py"):
        raise ConfigError(f"{words[0]} is no command. Put `chatlearn run` or `python` before it.")
    for word in words:
        key = word.removeprefix("--set=").partition("=")[0]
        if key in _OURS:
            raise ConfigError(f"{key} is set by `chatlearn launch`; leave {word!r} out of the program.")
    return list(words)


def with_cluster(words: Iterable[str], address: str) -> list[str]:
    """The program, told to join the cluster at an address (``host:port``, or ``auto`` for the one on this machine)."""
    # each behind --set: a --resume without a path would take a bare word as its path
    return [*words, "--set", "runtime_env.backend=ray", "--set", f"runtime_env.address={address}"]


def environment(given: Iterable[str], own: dict[str, str], by_value: bool = False) -> dict[str, str]:
    """What ``--env`` describes.

    Args:
        given: ``NAME=VALUE``, or ``NAME``, whose value is taken from ``own``.
        own: this process's environment.
        by_value: whether a bare ``NAME`` is refused, because values would lie in a file.

    Raises:
        ConfigError: a name can't be one, or a variable is not set.
    """
    found: dict[str, str] = {}
    for word in given:
        name, is_assigned, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(f"--env {word}: {name!r} is no name of a variable. Give NAME=VALUE or NAME.")
        if not is_assigned and by_value:
            raise ConfigError(f"--env {word}: give NAME=VALUE. Secrets do not belong into the file that this writes.")
        if not is_assigned and name not in own:
            raise ConfigError(f"--env {word}: {name} is not set here. Set it, or give {name}=VALUE.")
        found[name] = value if is_assigned else own[name]
    return found


def in_shell(words: Iterable[str]) -> str:
    """Words as one line that a shell splits into these words again."""
    return shlex.join(words)


def in_ray_job(words: Iterable[str]) -> str:
    """Words as a RayJob's ``entrypoint``.

    It passes two shells, and ``ray job submit`` between them, which quotes in the manner of Windows: it puts double
    quotes around words with spaces, escapes double quotes, and protects nothing else.

    Raises:
        ConfigError: a word does not survive that.
    """
    return " ".join(shlex.quote(_for_submit(word)) for word in words)


def _for_submit(word: str) -> str:
    """A word that is the given one after ``ray job submit`` and a shell."""
    in_double_quotes = not word or set(word) & set(" \t")
    if in_double_quotes and not set(word) & set("$`\\\n"):
        return word
    if not in_double_quotes and "\n" not in word and '\\"' not in word:
        return re.sub(r'[^\w@%+=:,./"-]', r"\\\g<0>", word)
    raise ConfigError(
        f"{word!r} does not survive the way through `ray job submit`. Put this setting into the YAML file behind -c."
    )
