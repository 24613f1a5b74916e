"""How often the kernel has ended processes for want of memory."""

from __future__ import annotations

import re

_LINE = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_NOTE = re.compile(r"^oom_kill (\d+) before$", re.MULTILINE)


def oom_kills() -> int | None:
    """Processes that the kernel's out-of-memory killer has ended on this machine since it was started (in a container
    that has its own count: in that one); ``None`` where the kernel does not say.
    """
    counts = [int(found[1]) for path in _places() if (found := _LINE.search(_read(path)))]
    return max(counts, default=None)


def note() -> str:
    """A line that a process leaves at its start, for :func:`kills_since`."""
    return f"oom_kill {oom_kills() or 0} before\n"


def kills_since(text: str) -> int:
    """Processes that were ended since a process has left its :func:`note` in a text; 0 where it has left none."""
    before, now = _NOTE.search(text), oom_kills()
    return max(now - int(before[1]), 0) if before and now is not None else 0


def _places() -> list[str]:
    places = ["/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
    for line in _read("/proc/self/cgroup").splitlines():
        number, kinds, path = line.split(":", 2)
        if number == "0" and not kinds:
            places.append(f"/sys/fs/cgroup{path}/memory.events")
        elif kinds == "memory":
            places.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    return places


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
