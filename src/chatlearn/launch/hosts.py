"""The list of machines: ``a,b,c``, or a file with one machine a line."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from chatlearn.errors import ConfigError


@dataclass(frozen=True)
class Host:
    """One machine.

    Attributes:
        name: what ssh gets: a name, an address, or ``user@name``.
        address: of the interface that Ray uses there; empty: Ray takes the one that the others are reached by.
        gpus: that Ray may use; ``None``: all that it finds.
        cpus: that Ray may use; ``None``: all that it finds.
        python: path of the Python that has chatlearn and Ray; empty: the one of the command line.
    """

    name: str
    address: str = ""
    gpus: int | None = None
    cpus: int | None = None
    python: str = ""

    @property
    def place(self) -> str:
        """Where the other machines reach it."""
        return self.address or self.name.rpartition("@")[2]

    def at(self, port: int) -> str:
        """A port of it, as others write it: ``place:port``."""
        return f"[{self.place}]:{port}" if ":" in self.place else f"{self.place}:{port}"


_FORM = "one host a line, as in: node-1 gpus=8 cpus=64 python=/opt/venv/bin/python address=10.0.0.1"


def read_hosts(given: str) -> list[Host]:
    """The machines of ``--hosts``; the first is the head.

    Args:
        given: names with commas between them, or the path of a file: one host a line, ``#`` comments, and behind the
            name ``gpus=``, ``cpus=``, ``python=`` and ``address=``.

    Raises:
        ConfigError: with everything that is wrong: no host at all, one twice, what is no host or no setting of one.
    """
    path = Path(given)
    if "," not in given and path.is_file():
        lines = [(f"{path}:{number}", line) for number, line in enumerate(_lines(path), 1)]
    elif "/" in given or given.endswith(".txt"):
        raise ConfigError(f"--hosts: there is no file {path.absolute()}. Give a file ({_FORM}), or names: a,b,c")
    else:
        lines = [("--hosts", name) for name in given.split(",")]
    problems: list[str] = []
    hosts: list[Host] = []
    first: dict[str, str] = {}
    for place, line in lines:
        host = _host(line, place, problems)
        if host is None:
            continue
        hosts.append(host)
        for name in {host.name.rpartition("@")[2], host.place}:
            if name in first:
                problems.append(f"{place}: {name} is listed already ({first[name]}). Each host runs Ray once.")
            first.setdefault(name, place)
    if not hosts and not problems:
        problems.append(f"--hosts {given}: no host in it. Give {_FORM}")
    if problems:
        raise ConfigError("\n".join(problems))
    return hosts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hosts: {path.absolute()} can't be read: {error}.") from None


def _host(line: str, place: str, problems: list[str]) -> Host | None:
    """The host of a line; ``None`` for a line without one, and for one that can't be understood."""
    try:
        name, *settings = shlex.split(line, comments=True) or [""]
    except ValueError as error:
        problems.append(f"{place}: {error} in {line!r}. Write {_FORM}")
        return None
    if not name:
        return None
    if not re.fullmatch(r"(?!-)[\w.@:%-]+", name) or "=" in name:
        problems.append(f"{place}: {name!r} is no name of a host. Write {_FORM}")
        return None
    found: dict[str, str | int] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        is_count = key in ("gpus", "cpus")
        if key not in ("gpus", "cpus", "python", "address") or not value or key in found:
            problems.append(f"{place}: {setting!r} is not understood. Write {_FORM}")
        elif is_count and not (value.isascii() and value.isdigit()):
            problems.append(f"{place}: {key} is a whole number, not {value!r}.")
        elif key == "address" and not re.fullmatch(r"[\w.:%-]+", value):
            problems.append(f"{place}: {value!r} is no address. Write the IP address of an interface: address=10.0.0.1")
        else:
            found[key] = int(value) if is_count else value
    return Host(name, **found)  # pyright: ignore[reportArgumentType]
