"""Runs are killed at random moments and resumed, and end as if nothing had happened, bit for bit.

Each run of the small PPO program (``kill_program.py``) is killed one to five times with SIGKILL and started again by
the same command, with ``runtime.resume=auto``, until it comes to its end. Every moment is drawn uniformly from the time
that the undisturbed run needs for what is left: its own beginning, and all after the newest checkpoint. Then what the
run has left must be what the undisturbed run has left: see :func:`kill_records.record_of`. Nothing that was written
aside may be left either.

    python tests/chaos/kills.py --runs 200 --seed 0 -o table.md                    in process
    python tests/chaos/kills.py --runs 40 --seed 0 --backend ray -o table.md       on Ray

In process, runs are forks of processes that have imported everything, two at a time. On Ray they are processes of their
own that join one Ray, and are killed once or twice: of every four runs two lose their driver, and two the worker of a
module that is trained or keeps state; one of these goes on by itself (``runtime.max_restarts: 1``). Half of the runs
write their checkpoints beside training (``runtime.async_save``). The program ends with 1 if any record differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from kill_children import Child, Ended, pool, undisturbed
from kill_program import HAS_ASYNC_SAVE, Settings
from kill_records import differences, record_of

MOST_KILLS = {"local": 5, "ray": 2}
FATAL = ("actor", "critic", "judge")
"""Modules of which no replica can take another's place."""

TimeLine = list[tuple[float, str]]


@dataclass
class Alone:
    """The undisturbed run.

    Attributes:
        settings: of the program.
        line: seconds since its beginning, and what it began then.
        record: what it has left.
    """

    settings: Settings
    line: TimeLine
    record: dict[str, Any]

    @property
    def setup_seconds(self) -> float:
        """To its first episode."""
        return next(seconds for seconds, place in self.line if place.startswith("episode 1,"))

    @property
    def seconds(self) -> float:
        """To its end."""
        return self.line[-1][0]

    def seconds_from(self, run: Path) -> float:
        """What it needs from the newest checkpoint of another run to the end."""
        pointer = run / "checkpoints" / "latest"
        episode = int(pointer.read_text().strip().removeprefix("episode-")) if pointer.exists() else 0
        later = (seconds for seconds, place in self.line if place.startswith(f"episode {episode + 1},"))
        return self.seconds - next(later, self.seconds)


def run_alone(settings: Settings, forked: bool = True) -> Alone:
    """Makes the undisturbed run."""
    _, line = undisturbed(settings, forked)
    return Alone(settings, line, record_of(settings.run))


@dataclass
class Story:
    """What happened to a run.

    Attributes:
        number: of the run.
        settings: of the program.
        kills: where the program was at each.
        problems: what differs from the undisturbed run, or went wrong.
        seconds: of all starts together.
    """

    number: int
    settings: Settings
    kills: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    @property
    def row(self) -> str:
        """A line of the table."""
        writing = "beside" if self.settings.async_save else "in line"
        record = "same" if not self.problems else "differs: " + "; ".join(self.problems)
        kills = f"{len(self.kills)} | {'; '.join(self.kills)}"
        return f"| {self.number} | {writing} | {kills} | {self.seconds:.1f} | {record} |"


def killed_run(number: int, alone: Alone, seed: int) -> Story:
    """One run; of one that was over before its first kill another is made, with other moments.

    Args:
        number: of the run; with the seed it decides what happens.
        alone: the undisturbed run.
        seed: of the program.
    """
    generator = random.Random(f"{seed} {number}")
    settings = replace(alone.settings, folder=f"{alone.settings.folder}-{number}", async_save=_is_async(number))
    kill = _kill_driver
    if settings.backend == "ray" and number % 2:
        kill = _kill_worker
        settings.runtime = {**settings.runtime, "max_restarts": number // 2 % 2}
    while True:
        story = Story(number, settings)
        began = time.monotonic()
        ended = _kill_and_resume(story, partial(kill, generator, alone), generator)
        story.seconds = time.monotonic() - began
        story.problems = problems_of(ended, settings, alone)
        if story.kills or story.problems:
            return story
        shutil.rmtree(settings.folder, ignore_errors=True)


def _is_async(number: int) -> bool:
    return HAS_ASYNC_SAVE and number // 4 % 2 == 1


def _kill_and_resume(story: Story, kill: Callable[[Child], str], generator: random.Random) -> Ended:
    """Starts the program until it comes to its end."""
    left = generator.randint(1, MOST_KILLS[story.settings.backend])
    while True:
        for file in story.settings.places.parent.glob("*.pid"):
            file.unlink()
        child = Child(story.settings, forked=story.settings.backend == "local")
        place = kill(child) if left else ""
        if place:
            story.kills.append(place)
            left -= 1
        ended = child.end()
        if not place or not ended.code:
            return ended


def _kill_driver(generator: random.Random, alone: Alone, child: Child) -> str:
    """Kills the program; returns where it was, or nothing if it was over before."""
    if not _wait(generator, alone, child):
        return ""
    child.send(signal.SIGKILL)
    ended = child.end()
    return ended.place if ended.code == -signal.SIGKILL else ""


def _kill_worker(generator: random.Random, alone: Alone, child: Child) -> str:
    """Kills the worker of a module that can't be replaced; returns where the driver was, or nothing if one of them was
    over before.
    """
    name = generator.choice(FATAL)
    file = child.settings.places.parent / f"{name}.pid"
    if not child.wait_until(lambda: file.exists() and bool(file.read_text())) or not _wait(generator, alone, child):
        return ""
    place = child.places[-1][1]
    try:
        os.kill(int(file.read_text()), signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return f"{name}: {place}"


def _wait(generator: random.Random, alone: Alone, child: Child) -> bool:
    """Waits for a moment that is drawn uniformly from what the run still needs; tells whether it has come. On Ray,
    where most of the time goes by before the first episode, three of four moments are behind its beginning.
    """
    seconds, begins = alone.seconds_from(child.settings.run), alone.setup_seconds
    if child.settings.backend == "ray" and generator.random() < 0.75:
        if not child.wait_until(lambda: any(place.startswith("episode") for _, place in child.places)):
            return False
        begins, start = 0.0, time.monotonic()
    elif child.wait_until(lambda: bool(child.places)):
        start = child.places[0][0]
    else:
        return False
    moment = start + generator.uniform(0, begins + seconds)
    return child.wait_until(lambda: time.monotonic() >= moment)


def problems_of(ended: Ended, settings: Settings, alone: Alone) -> list[str]:
    """What is not as in the undisturbed run; if all is, the folder is deleted."""
    if ended.code:
        return [f"the last start ended with {ended.code}: {' '.join(ended.output.split()[-40:])}"]
    problems = differences(alone.record, record_of(settings.run))
    if not problems:
        shutil.rmtree(settings.folder)
    return problems


@contextmanager
def one_ray() -> Generator[str]:
    """A Ray for several runs; yields its address."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def in_process(folder: Path, numbers: range, seed: int, jobs: int) -> Iterator[Story | Alone]:
    """The undisturbed run, and runs that are killed, as they come to their ends."""
    with pool(jobs) as processes:
        alone = processes.submit(run_alone, Settings(str(folder / "run"))).result()
        yield alone
        yield from processes.map(partial(killed_run, alone=alone, seed=seed), numbers)


def on_ray(folder: Path, numbers: range, seed: int) -> Iterator[Story | Alone]:
    """The same, one after another."""
    with one_ray() as address:
        alone = run_alone(Settings(str(folder / "run"), "ray", address), forked=False)
        yield alone
        for number in numbers:
            yield killed_run(number, alone, seed)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill runs at random moments, resume them, and compare the records.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, in process")
    parser.add_argument("-o", "--out", type=Path, help="write the table to this file too")
    parser.add_argument("--folder", type=Path, help="for the runs, made anew; those that differ stay there")
    options = parser.parse_args()
    folder: Path = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(1, options.runs + 1)
    local = options.backend == "local"
    stories = (
        in_process(folder, numbers, options.seed, options.jobs) if local else on_ray(folder, numbers, options.seed)
    )
    alone = next(stories)
    assert isinstance(alone, Alone)
    lines = [
        f"kill -9 at random moments and resume, {options.backend}, seed {options.seed}; the undisturbed run takes "
        f"{alone.seconds:.1f} s",
        "",
        "| run | checkpoints are written | kills | the program was in | all starts, s | record |",
        "|---:|---|---:|---|---:|---|",
    ]
    print("\n".join(lines), flush=True)
    told = [story for story in _told(stories, lines) if isinstance(story, Story)]
    num_kills = sum(len(story.kills) for story in told)
    num_same = sum(not story.problems for story in told)
    lines += [
        "",
        f"{num_same} of {options.runs} runs end with the record of the undisturbed run, after {num_kills} kills.",
    ]
    print("\n".join(lines[-2:]))
    if options.out:
        options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if options.folder is None and num_same == options.runs:
        shutil.rmtree(folder)
    return 0 if num_same == options.runs else 1


def _told(stories: Iterator[Story | Alone], lines: list[str]) -> Iterator[Story | Alone]:
    for story in stories:
        if isinstance(story, Story):
            lines.append(story.row)
            print(story.row, flush=True)
        yield story


if __name__ == "__main__":
    raise SystemExit(main())
