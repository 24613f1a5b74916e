"""Has all processes of a Ray that was started here end with it, whatever becomes of the driver.

Ray ends most of them itself, but its agents look for a server that is gone for a minute after a driver was killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

_PROGRAM = """
import os, signal, sys

def writes_to(process, logs):
    for fd in os.listdir(f"/proc/{process}/fd"):
        if os.readlink(f"/proc/{process}/fd/{fd}").startswith(logs):
            with open(f"/proc/{process}/fdinfo/{fd}") as file:
                if any(line.startswith("flags:") and int(line.split()[1], 8) & os.O_ACCMODE for line in file):
                    return True
    return False

driver, logs = sys.argv[1:]
sys.stdin.read()  # the driver has closed it then, or is gone
for _ in range(5):
    found = False
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if process != driver and writes_to(process, logs):
                os.kill(int(process), signal.SIGKILL)
                found = True
        except OSError:
            pass
    if not found:
        break
"""


class Reaper:
    """A small process that outlives this one by a moment, and ends what writes to the logs of a Ray.

    Where there is no ``/proc`` it does nothing: Ray's own ways remain.

    Args:
        logs: folder that this Ray's processes write to, and nobody else.
    """

    def __init__(self, logs: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if os.path.isdir("/proc/self"):
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), os.path.join(logs, "")]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def reap(self) -> None:
        """Ends them, and waits until that is done."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
            self._process = None
