"""What else may happen to a run besides one kill: each kind of disturbance, then a resume, and the record must be the
same.

    python tests/chaos/disturbances.py --runs 5 --seed 0 -o table.md               five of each kind
    python tests/chaos/disturbances.py --kinds "full disk,two writers"

The runs are those of ``kills.py``. The program ends with 1 if any record differs, or a program ends otherwise than it
should.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path

from kill_children import Child, Ended, pool
from kill_program import HAS_ASYNC_SAVE, Settings
from kills import Alone, problems_of, run_alone

from chatlearn.checkpoint.verify import verify

KILLED = -signal.SIGKILL
FAILED, INTERRUPTED = 1, 128 + signal.SIGTERM


@dataclass
class Disturbed:
    """A run that something has happened to.

    Attributes:
        kind: of what happened.
        settings: of the program.
        happened: in words, step by step.
        problems: what should have been otherwise.
    """

    kind: str
    settings: Settings
    happened: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])

    def expect(self, ended: Ended, codes: tuple[int, ...], words: str = "") -> Ended:
        """Sees that a program has ended with one of these codes, and has said this."""
        self.happened.append(f"ended with {ended.code} in {ended.place}")
        if ended.code not in codes:
            self.problems.append(
                f"it ended with {ended.code} instead of {codes}: {' '.join(ended.output.split()[-40:])}"
            )
        elif ended.code and not re.search(words, ended.output):
            self.problems.append(f"it did not say {words!r}: {' '.join(ended.output.split()[-40:])}")
        return ended

    @property
    def row(self) -> str:
        """A line of the table."""
        return f"| {self.kind} | {'; '.join(self.happened)} | {'; '.join(self.problems) or 'same'} |"


def sigterm_storm(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """Up to thirty SIGTERMs in a row, twice; each start ends cleanly, and soon."""
    for _ in range(2):
        child = Child(run.settings)
        child.wait_for(generator.uniform(0, alone.seconds))
        number, gap = generator.randint(1, 30), generator.choice([0.0, 0.001, 0.01, 0.05])
        for _ in range(number):
            child.send(signal.SIGTERM)
            time.sleep(gap)
        run.happened.append(f"{number} SIGTERMs every {gap * 1000:g} ms")
        ended = run.expect(child.end(), (INTERRUPTED, -signal.SIGTERM, 0))  # out of the run, SIGTERM is nobody's
        result = run.settings.run / "result.json"
        if ended.place not in ("begin", "") and json.loads(result.read_text())["status"] == "running":
            run.problems.append("it ended without closing the run")


def killed_while_writing(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """Three kills, each while a checkpoint is being written or put in its place."""
    checkpoints = run.settings.run / "checkpoints"
    for _ in range(3):
        before = _being_written(checkpoints)
        child = Child(run.settings)
        child.wait_until(partial(_has_begun, checkpoints, before, set[str](), generator.randint(1, 3)))
        time.sleep(generator.uniform(0, 0.03))
        child.send(signal.SIGKILL)
        run.expect(child.end(), (KILLED, 0))


def _being_written(checkpoints: Path) -> set[str]:
    """Names and inodes of the folders of checkpoints that are not complete."""
    folders: set[str] = set()
    for path in checkpoints.glob(".episode-*.partial"):
        with contextlib.suppress(FileNotFoundError):
            folders.add(f"{path.name} {path.stat().st_ino}")
    return folders


def _has_begun(checkpoints: Path, before: set[str], seen: set[str], number: int) -> bool:
    """Whether so many checkpoints were begun that were not there before."""
    seen |= _being_written(checkpoints) - before
    return len(seen) >= number


def jumping_clock(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """The wall clock jumps by hours at each look, in all three starts; two kills."""
    for _ in range(2):
        run.settings = replace(run.settings, faults={"clock": generator.randrange(1000)})
        child = Child(run.settings)
        child.kill_after(generator.uniform(0.3, 0.9) * alone.seconds)
        run.expect(child.end(), (KILLED, 0))
    run.settings = replace(run.settings, faults={"clock": generator.randrange(1000)})


def slow_disk(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """Each write and fsync of a checkpoint takes a millisecond longer; two kills."""
    run.settings = replace(run.settings, faults={"slow": 0.001})
    for _ in range(2):
        child = Child(run.settings)
        child.kill_after(generator.uniform(0, 2 * alone.seconds))
        run.expect(child.end(), (KILLED, 0))
    run.settings.faults.clear()


def two_writers(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """After a kill two processes resume the run at once: one of them is told who has it."""
    child = Child(run.settings)
    child.kill_after(generator.uniform(0.3, 0.9) * alone.seconds)
    run.expect(child.end(), (KILLED, 0))
    children: list[Child] = []
    for name in ("one.txt", "two.txt"):
        children.append(Child(run.settings, output=name))
        time.sleep(generator.choice([0.0, 0.1]))
    ended = sorted((each.end() for each in children), key=lambda each: each.code)
    run.expect(ended[0], (0,))
    run.expect(ended[1], (FAILED, 0), r"CheckpointError: .* is in use by .*process.*: wait for it, stop it")


def full_disk(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """There is room for some of the checkpoints only: the run ends, says so, and leaves earlier ones as they were."""
    _fails(run, {"full": generator.randrange(2_000_000)}, r"CheckpointError: .*can't be written: the disk is full")


def file_limit(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """No file may be larger than some kilobytes, by the kernel's own limit."""
    _fails(
        run,
        {"largest file": generator.randrange(20_000, 38_000)},
        r"CheckpointError: .*can't be written: File too large",
    )


def no_memory(run: Disturbed, generator: random.Random, alone: Alone) -> None:
    """The writer has no memory at one of its writes."""
    _fails(run, {"no memory": generator.randrange(1, 1500)}, r"MemoryError")


def _fails(run: Disturbed, faults: dict[str, object], words: str) -> None:
    """A start that ends at a fault of the disk; what was complete before is as it was."""
    name, value = next(iter(faults.items()))
    run.happened.append(f"{name}: {value}")
    settings = replace(run.settings, faults=faults, runtime={**run.settings.runtime, "trace": False})
    ended = run.expect(Child(settings).end(), (FAILED, 0), words)
    checkpoints = run.settings.run / "checkpoints"
    run.problems += [problem for path in checkpoints.glob("episode-*") for problem in verify(path)]
    run.problems += [f"it left {path.name}" for path in checkpoints.glob(".*")]
    if ended.code and not re.search(rf"Go on with: runtime.resume={run.settings.run}$", ended.output, re.MULTILINE):
        run.problems.append("it did not say how to go on")


KINDS: dict[str, Callable[[Disturbed, random.Random, Alone], None]] = {
    "SIGTERM storm": sigterm_storm,
    "killed while writing": killed_while_writing,
    "jumping clock": jumping_clock,
    "slow disk": slow_disk,
    "two writers": two_writers,
    "full disk": full_disk,
    "file limit": file_limit,
    "no memory": no_memory,
}


def disturbed_run(kind: str, number: int, alone: Alone, seed: int) -> Disturbed:
    """One run with a disturbance, resumed until it comes to its end, and compared with the undisturbed one."""
    generator = random.Random(f"{seed} {kind} {number}")
    settings = replace(
        alone.settings,
        folder=f"{alone.settings.folder}-{kind.replace(' ', '-')}-{number}",
        async_save=HAS_ASYNC_SAVE and number % 2 == 0,
    )
    run = Disturbed(kind, settings)
    KINDS[kind](run, generator, alone)
    ended = run.expect(Child(run.settings).end(), (0,))
    run.problems += [] if ended.code else problems_of(ended, run.settings, alone)
    return run


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Disturb runs, resume them, and compare the records.")
    parser.add_argument("--runs", type=int, default=5, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    lines = [f"Disturbances, seed {options.seed}", "", "| kind | what happened | record |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="disturbances-"))
    pairs = [(kind, number) for kind in options.kinds.split(",") for number in range(1, options.runs + 1)]
    bad = 0
    with pool(options.jobs) as processes:
        alone = processes.submit(run_alone, Settings(str(folder / "run"))).result()
        for run in processes.map(disturbed_run, *zip(*pairs, strict=True), repeat(alone), repeat(options.seed)):
            bad += bool(run.problems)
            lines.append(run.row)
            print(run.row, flush=True)
    lines += [
        "",
        f"{len(pairs) - bad} of {len(pairs)} runs end as they should, with the record of the undisturbed run.",
    ]
    print("\n".join(lines[-2:]))
    if options.out:
        options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
