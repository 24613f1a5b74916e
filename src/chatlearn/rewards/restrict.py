"""A process gives up what it does not need, before it runs a text that somebody else has written.

First what the system holds it to: limits of resources, no rights on files (Landlock), no rights of root. Then an audit
hook of Python, which ends the process at the first thing that is none of its business. Each layer is there where the
system has it. The hook alone is no wall, since code in the same process can get round it. The layers of the system are
one, as far as they go and its kernel has no holes: SECURITY.md says what they leave open.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Callable

from chatlearn.rewards.helper import limit, set_alarm

HARMLESS = frozenset({"compile", "exec", "builtins.id", "array.__new__"})
"""Events of Python's audit that evaluating an expression raises. All others end the process."""

_SIGNATURE = frozenset({"__code__", "__defaults__", "__kwdefaults__"})
"""What ``inspect`` reads of a function, for sympy; reading frames, say, raises the same event."""

_NOBODY = 65534
_NEW_IPC, _NEW_USER, _NEW_NETWORK = 0x08000000, 0x10000000, 0x40000000
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES = 1, 38
_SIGKILL = 9
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
"""Numbers of system calls, the same on all processors since they came in Linux 5.13."""
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files a version of Landlock knows; later ones know no more."""


def leave_networks() -> None:
    """Moves this process into a network without anything, where the system lets it."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if libc.unshare(_NEW_NETWORK | _NEW_IPC) != 0 and os.getuid() != 0:  # there root could not become nobody
            libc.unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC)


def restrict(keep: int, cpu_seconds: float) -> None:
    """Takes from this process all but computing for so long and writing to one pipe. There is no way back.

    It can open no file and no socket, start no process, and write no core. It is a session of its own.

    Args:
        keep: the one descriptor that stays open, beside the three standard ones; below 1024.
        cpu_seconds: after so much work the system ends it by SIGPROF, and by SIGKILL if it holds that off.
    """
    os.setsid()
    os.closerange(3, keep)
    os.closerange(keep + 1, 1024)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _give_up_files(libc)
        _give_up_root()
        libc.prctl(_DIE_WITH_PARENT, _SIGKILL, 0, 0, 0)
    seconds = math.ceil(cpu_seconds) + 1
    limit("RLIMIT_CPU", seconds, seconds + 1)
    for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE"):
        limit(name, 0)
    set_alarm(cpu_seconds)


def landlock_version(libc: ctypes.CDLL) -> int:
    """Of this system; 0 or less where it has none."""
    return libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)


def _give_up_files(libc: ctypes.CDLL) -> None:
    """Landlock: no file is opened, made, removed or renamed, no TCP, no signals to processes outside."""
    version = landlock_version(libc)
    if version <= 0:
        return
    rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    handled = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(ctypes.sizeof(handled)), 0)
    if ruleset >= 0:
        libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
        os.close(ruleset)


def _give_up_root() -> None:
    """Root becomes nobody: it would be above limits, and owns what others may not touch."""
    if os.getuid() == 0:
        with contextlib.suppress(OSError):  # a container may not let it
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def refuse_events(refuse: Callable[[str], None]) -> None:
    """Installs the hook, which can't be removed. Python raises no event for some things, ``os.write`` for one.

    Args:
        refuse: is called with the name of an event that isn't harmless, and must not return.
    """
    harmless, signature = HARMLESS, _SIGNATURE

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in harmless and not (event == "object.__getattr__" and arguments[1] in signature):
            refuse(event)

    sys.addaudithook(hook)
