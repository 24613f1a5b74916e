"""Faults of ten kinds, each in a run of its own: what the run says, how soon, and what it leaves behind.

Every fault happens to a program of its own (``fault_driver.py``), with varied module, replica and moment. Checked are
the exit code, that the error names module, replica and cause within its limit and five seconds more, and that no
process of the run and no file in shared memory or in its folder for temporary files is left.

    python tests/chaos/faults.py --runs 10 --seed 0 -o table.md       ten of each kind

The program ends with 1 if any of this does not hold.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
GRACE_SECONDS = 5.0
VANISH_SECONDS = 30.0
"""In which the processes of a run have to be gone; where the driver is killed, Ray's own notice it by looking."""

MARK = "CHATLEARN_CHAOS_RUN"
"""Environment variable by which all processes of a run are known."""


@dataclass
class Fault:
    """What goes wrong in a run.

    Attributes:
        kind: one of :data:`KINDS`.
        module: that it happens to; empty where it happens to all.
        replica: of the module.
        where: in the module's life.
        how: see :data:`fault_modules.HOW`.
        call: number of the call there.
        words: patterns that the error has to match.
        limit: seconds from the fault to the error.
        hang_timeout: ``runtime.hang_timeout_seconds``.
        max_replacements: ``runtime.max_replacements``.
        seconds: that the first steps take.
        delay: seconds from ``setup`` to the fault, where it comes from outside.
        signal: that the program gets, where it is one; Ctrl-C goes to its whole group of processes.
        code: the exit code of the program; ``None`` where any will do.
    """

    kind: str
    module: str
    words: list[str]
    replica: int = 0
    where: str = ""
    how: str = ""
    call: int = 0
    limit: float = 5.0
    hang_timeout: float = 60.0
    max_replacements: int = 0
    seconds: float = 0.0
    delay: float = 0.0
    signal: int = 0
    code: int | None = 1


@dataclass
class Result:
    """What came of it.

    Attributes:
        seconds: from the fault to the error; ``None`` where there is none to come.
        problems: what should have been otherwise.
        output: of the program.
    """

    seconds: float | None
    problems: list[str]
    output: str = field(repr=False)


def _step(generator: random.Random) -> tuple[str, int, str, int]:
    """Module, replica, step and number of a call that every run comes to."""
    module = generator.choice(["rollout", "reward", "learner"])
    if module == "learner":
        return module, 0, "train_step", generator.randrange(12)
    if module == "reward":
        return module, 0, "forward_step", generator.randrange(24)
    return module, generator.randrange(2), "forward_step", generator.randrange(12)


def _raises(generator: random.Random) -> Fault:
    module, replica, where, call = _step(generator)
    words = [rf"ValueError: a fault on purpose\n  raised in {module}\[{replica}\]\.{where}, rank 0, episode \d+, "]
    return Fault("step raises", module, words, replica, where, "raise", call)


def _exits(generator: random.Random) -> Fault:
    module, replica, where, call = _step(generator)
    words = [rf"{module}\[{replica}\] died while it ran {where}", r"os\._exit\(3\)", r"fault_modules\.py.*in _exit"]
    return Fault("os._exit", module, words, replica, where, "exit", call)


def _killed(generator: random.Random) -> Fault:
    module, replica, where, call = _step(generator)
    how = generator.choice(["kill", "kill", "abort"])
    cause = "it was killed by SIGKILL" if how == "kill" else "it crashed: Aborted"
    return Fault(
        "kill -9", module, [rf"{module}\[{replica}\] died while it ran {where}", cause], replica, where, how, call
    )


def _out_of_memory(generator: random.Random) -> Fault:
    module, replica, where, call = _step(generator)
    how = generator.choice(["memory of torch", "memory of python"])
    cause = "MemoryError" if how == "memory of python" else "RuntimeError: .*can't allocate memory"
    words = [cause, rf"raised in {module}\[{replica}\]\.{where}, rank 0, episode \d+"]
    return Fault("out of memory", module, words, replica, where, how, call)


def _hang(kind: str, module: str, replica: int, where: str, how: str, call: int, name: str) -> Fault:
    limit = 6.0
    words = [rf"No call of any module has ended for {limit:g} s", rf"{module}\[{replica}\]{name}.*, running for \d+ s"]
    if how == "stop":
        words.append(rf"{module}\[{replica}\]:\n  process \d+ is stopped")
    else:
        function = {"sleep": "_sleep", "loop": "_loop", "deadlock": "_deadlock"}[how]
        words.append(rf"{module}\[{replica}\] executes:\n(?s:.*)fault_modules\.py\", line \d+, in {function}")
    return Fault(kind, module, words, replica, where, how, call, limit=limit, hang_timeout=limit)


def _hangs(generator: random.Random) -> Fault:
    module, replica, where, call = _step(generator)
    how = generator.choice(["sleep", "loop", "deadlock"])
    return _hang("hang in a step", module, replica, where, how, call, rf"\.{where}")


def _hangs_in_setup(generator: random.Random) -> Fault:
    module = generator.choice(["rollout", "reward", "learner"])
    replica = generator.randrange(2) if module == "rollout" else 0
    how = generator.choice(["sleep", "loop", "deadlock", "stop"])
    return _hang("hang in setup", module, replica, "setup", how, 0, r"\.setup")


def _hangs_in_sync(generator: random.Random) -> Fault:
    module = generator.choice(["rollout", "learner"])
    replica = generator.randrange(2) if module == "rollout" else 0
    how = generator.choice(["sleep", "loop", "deadlock", "stop"])
    return _hang("hang in sync", module, replica, "sync", how, generator.randrange(3), ": parameter sync")


def _slow(generator: random.Random) -> Fault:
    module = generator.choice(["rollout", "reward", "learner"])
    replica = generator.randrange(2) if module == "rollout" else 0
    return Fault("slow worker", module, [], replica, hang_timeout=6.0, seconds=4.0, code=0)


def _driver_killed(generator: random.Random) -> Fault:
    return Fault("driver killed", "", [], delay=generator.uniform(0, 3), code=-9)


def _node_removed(generator: random.Random) -> Fault:
    words = [r"is lost.*: its node .* is gone"]
    return Fault("node removed", "", words, delay=generator.uniform(0, 2), limit=30.0, hang_timeout=60.0)


KINDS: dict[str, Callable[[random.Random], Fault]] = {
    "step raises": _raises,
    "os._exit": _exits,
    "kill -9": _killed,
    "out of memory": _out_of_memory,
    "hang in a step": _hangs,
    "hang in setup": _hangs_in_setup,
    "hang in sync": _hangs_in_sync,
    "slow worker": _slow,
    "driver killed": _driver_killed,
    "node removed": _node_removed,
}
"""Name of a kind -> draws a fault of it."""


PHASES: dict[str, tuple[str, str]] = {
    "start": ("", ""),
    "construct": ("", ""),
    "setup": ("rollout", "sleep"),
    "forward_step": ("rollout", "sleep"),
    "train_step": ("learner", "sleep"),
    "sync": ("rollout", "sleep"),
    "save": ("learner", "sleep"),
    "stop": ("", ""),
}
"""Phase of a run -> module that something of runs then, and how."""


def interruption(number: int, where: str) -> Fault:
    """Ctrl-C or SIGTERM at a phase of the run."""
    module, how = PHASES[where]
    words = [r"Run interrupted after \d+ complete episodes\. Go on with: runtime\.resume=\S+"]
    if where == "stop":  # the run has ended, and nothing is left to go on with
        return Fault(signal.Signals(number).name, "", [], where=where, signal=number, code=None)
    call = 1 if where == "sync" else 0
    return Fault(
        signal.Signals(number).name, module, words, 0, where, how, call, delay=0.2, signal=number, code=128 + number
    )


def inject(fault: Fault) -> Result:
    """Runs the program that a fault happens to, and sees what it leaves behind."""
    folder = Path(tempfile.mkdtemp(prefix="cl"))  # short, since sockets lie below
    mark = uuid.uuid4().hex
    shared = _shared_memory()
    moment, ended = folder / "moment", folder / "ended"
    description = asdict(fault) | {"folder": str(folder / "runs"), "moment": str(moment), "ended": str(ended)}
    environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    with (folder / "output").open("w+") as file:
        command = [sys.executable, str(HERE / "fault_driver.py"), json.dumps(description)]
        program = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            code = program.wait(timeout=180)
        except subprocess.TimeoutExpired:
            program.kill()
            code = program.wait()
    output = (folder / "output").read_text()
    seconds = float(ended.read_text()) - float(moment.read_text()) if ended.exists() and moment.exists() else None
    problems = [f"exit code {code} instead of {fault.code}"] if fault.code not in (None, code) else []
    last = output[output.rfind("ended by ") :] if "ended by " in output else output
    for words in fault.words:
        if not re.search(words, last):
            problems.append(f"the error does not say {words!r}")
    if lost := folder / "moment.lost":
        names = lost.read_text().split() if lost.exists() else []
        if names and not any(f"{name} is lost" in last for name in names):
            problems.append(f"the error names none of {', '.join(names)}")
    if fault.words and not moment.exists():
        problems.append("the fault did not happen")
    if fault.words and seconds is not None and seconds > fault.limit + GRACE_SECONDS:
        problems.append(f"the error came after {seconds:.1f} s")
    if left := _processes(mark, VANISH_SECONDS):
        problems.append(f"processes are left: {', '.join(left)}")
    if left := sorted(_shared_memory() - shared):
        problems.append(f"shared memory is left: {', '.join(left)}")
    if left := sorted(path.name for path in folder.iterdir() if path.name not in _EXPECTED):
        problems.append(f"files are left: {', '.join(left)}")
    shutil.rmtree(folder, ignore_errors=True)
    return Result(seconds, problems, output)


_EXPECTED = {"moment", "moment.lost", "ended", "output", "runs", "ray", f"torchinductor_{getpass.getuser()}"}
"""What a run's folder for temporary files may hold: what this program puts there, Ray's logs, and a cache of torch."""


def _processes(mark: str, patience: float) -> list[str]:
    """Processes of a run that are still there after some time, as ``number name``."""
    end = time.monotonic() + patience
    while True:
        found: list[str] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
            except OSError:  # it has just ended, or is somebody else's
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("*") if "chatlearn" in path.name or "torch" in path.name}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Have faults of ten kinds happen to runs, and see what these say.")
    parser.add_argument("--runs", type=int, default=10, help="faults of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), help="only this one")
    parser.add_argument("--signals", action="store_true", help="Ctrl-C and SIGTERM at every phase of a run instead")
    parser.add_argument("--output", action="store_true", help="print what each program printed")
    parser.add_argument("-o", "--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    rows = ["| kind | module | how | call | error after, s | limit, s | |", "|---|---|---|---:|---:|---:|---|"]
    print("\n".join(rows), flush=True)
    num_good = 0
    if options.signals:
        faults = [interruption(number, where) for number in (signal.SIGINT, signal.SIGTERM) for where in PHASES]
    else:
        kinds = [options.kind] if options.kind else list(KINDS)
        faults = [KINDS[kind](generator) for kind in kinds for _ in range(options.runs)]
    for fault in faults:
        result = inject(fault)
        num_good += not result.problems
        rows.append(_row(fault, result))
        print(rows[-1], flush=True)
        if options.output:
            print(result.output)
    last = f"{num_good} of {len(faults)} faults ended as they should."
    print(f"\n{last}")
    if options.out:
        options.out.write_text("\n".join([*rows, "", last, ""]), encoding="utf-8")
    return 0 if num_good == len(faults) else 1


def _row(fault: Fault, result: Result) -> str:
    where = f"{fault.module}[{fault.replica}]" if fault.module else "all"
    how = ": ".join(filter(None, [fault.where, fault.how])) or (f"after {fault.delay:.1f} s" if fault.delay else "")
    seconds = f"{result.seconds:.1f}" if result.seconds is not None else ""
    limit = f"{fault.limit:g}" if fault.words else ""
    outcome = "; ".join(result.problems) or "as it should"
    return f"| {fault.kind} | {where} | {how} | {fault.call} | {seconds} | {limit} | {outcome} |"


if __name__ == "__main__":
    raise SystemExit(main())
