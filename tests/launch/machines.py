"""Machines that are folders of this one: a stand-in for ssh, and a ``ray`` that records how it is called."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Called as `ssh` is, with a host and a command line.
HERE = """\
#!/bin/bash
host=$1
shift
case $host in
  down) echo "ssh: connect to host down port 22: No route to host" >&2; exit 255 ;;
esac
export MACHINE=$host RECORD={record}
exec bash -c "$*"
"""

RAY = """\
#!{python}
import json, os, signal, sys, time

machine, record = os.environ["MACHINE"], os.environ["RECORD"]


def note(what, **more):
    line = json.dumps({{"what": what, "machine": machine, "words": sys.argv[1:], **more}})
    with open(record, "a") as file:
        file.write(line + "\\n")


def end(number, frame):
    note("ended", signal=number)
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
secret = os.environ.get("RAY_AUTH_TOKEN", "")
note("ray", folder=os.getcwd(), mode=os.environ.get("RAY_AUTH_MODE"), token=secret, color=os.environ.get("COLOR"))
print("Local node IP: 10.0.0.1", flush=True)
if machine.startswith("broken"):
    print("RuntimeError: Version mismatch", flush=True)
    sys.exit(3)
if not machine.startswith("slow"):
    print("Ray runtime started.", flush=True)
if machine.startswith("brief"):
    time.sleep(0.5)
    sys.exit(4)
while True:
    time.sleep(60)
"""

CHATLEARN = """\
#!{python}
import json, os, signal, sys, time

if sys.argv[1] == "wait":  # until a signal comes
    def end(number, frame):
        print("told to end", number, flush=True)
        sys.exit(40 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    print("running", flush=True)
    time.sleep(60)
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps({{"what": "program", "machine": os.environ["MACHINE"], "words": sys.argv[1:]}}) + "\\n")
print("the program's own words", flush=True)
sys.exit(7 if "fails" in sys.argv else 0)
"""


class Machines:
    """The stand-ins, in a folder.

    Attributes:
        ssh: to be used for ssh.
        python: its folder has ``ray`` and ``chatlearn``.
    """

    def __init__(self, folder: Path) -> None:
        self._record = folder / "record.jsonl"
        programs = folder / "the bin"  # a space, to be quoted
        programs.mkdir()
        self.ssh = str(self.script(folder / "here", HERE.format(record=self._record)))
        self.python = str(programs / "python3")
        os.symlink(sys.executable, self.python)
        self.script(programs / "ray", RAY.format(python=sys.executable))
        self.script(programs / "chatlearn", CHATLEARN.format(python=sys.executable))

    @staticmethod
    def script(path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    def told(self, what: str) -> list[dict[str, Any]]:
        """What was recorded: calls of ``ray``, their ends (``ended``), and the ``program``."""
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]

    def all_ended(self) -> bool:
        """Whether every ``ray`` that was started has been ended, within some seconds."""
        for _ in range(100):
            if len(self.told("ended")) == len(self.told("ray")):
                return True
            time.sleep(0.1)
        return False
