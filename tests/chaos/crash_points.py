"""A checkpoint is interrupted at every call of the operating system, and either the old or the new one loads, exactly.

One checkpoint of the small PPO program (``kill_program.py``) makes a few hundred calls: open, write, fsync, rename,
mkdir, unlink, rmdir, close. For each of them a process goes through the same checkpoint and ends there: before the
call, and for a write also after half of its bytes. Then another process resumes the run, which must go on from a
checkpoint and end with the record of the run that was left alone. The same for what a failure of the power leaves: of
files the bytes that an fsync has forced to the disk, in folders the names that one has (or, as other disks have it, all
names).

    python tests/chaos/crash_points.py -o table.md                           all variants, all points
    python tests/chaos/crash_points.py --variants pruning,best --stride 5

An audit hook sees to it that nothing goes past the patched functions, and bytes are counted. The program ends with 1 if
any run is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product, repeat
from pathlib import Path
from typing import Any, Protocol

from disk_calls import Call, DiskCalls
from disk_model import Disk, make_tree
from kill_children import Child, pool
from kill_program import Settings, make_engine
from kill_records import differences, record_of

from chatlearn.checkpoint.verify import verify

CRASHED = 77
"""Exit code of a process that has ended itself."""

SMALL = {
    "num_episode": 3,
    "sample_per_episode": 8,
    "num_training_epoch": 1,
    "eval_episode_interval": 0,
    "best_metric": None,
    "sinks": ["jsonl"],
    "export": ["actor"],
}


@dataclass(frozen=True)
class Variant:
    """What kind of checkpoint is interrupted.

    Attributes:
        what: in words.
        before: episodes that were saved before.
        runtime: keys of the program.
        resumed: further keys of the start that is interrupted.
        crashed_at: pattern of a call, before which an earlier start has ended too; then the way to the first episode is
            interrupted, and not the checkpoint.
    """

    what: str
    before: int = 1
    runtime: dict[str, Any] = field(default_factory=dict[str, Any])
    resumed: dict[str, Any] = field(default_factory=dict[str, Any])
    crashed_at: str = ""


_AGAIN = {"load_data_checkpoint_iteration": 1}

VARIANTS = {
    "first": Variant("the first checkpoint", before=0),
    "second": Variant("the second one"),
    "pruning": Variant("the second one, where one is kept", runtime={"max_data_ckpt_nums": 1}),
    "best": Variant("one that is the best of all", runtime={"best_metric": "judge/reward", "best_metric_mode": "min"}),
    "last": Variant("the last one of a run", before=2, runtime={"max_data_ckpt_nums": 1}),
    "replacing": Variant("one in the place of an older one", before=2, resumed=_AGAIN),
    "recovery": Variant(
        "a start after a kill between two renames",
        before=2,
        resumed=_AGAIN,
        crashed_at=r"rename \.episode-000002\.partial -> episode-000002",
    ),
}


class Handler(Protocol):
    """Gets all calls, and is told when it matters."""

    is_armed: bool

    def handle(self, call: Call) -> Any:
        """Does the call, or not."""
        ...


class Crash:
    """Ends the process at a call.

    Args:
        point: number of the call, from 0; ``-1`` for none.
        half: after half of the bytes of a write.
        pattern: ends it before the first call that matches, if there is one.

    Attributes:
        calls: so far.
    """

    def __init__(self, point: int = -1, half: bool = False, pattern: str = "") -> None:
        self._point, self._half, self._pattern = point, half, pattern
        self._lock = threading.Lock()
        self.is_armed = False
        self.calls: list[Call] = []

    def handle(self, call: Call) -> Any:
        """Does the call, or ends the process."""
        if not self.is_armed:
            return call.do()
        with self._lock:
            number = len(self.calls)
            self.calls.append(replace(call, do=None))
        if number == self._point or (self._pattern and re.search(self._pattern, str(call))):
            if self._half and call.function == "write":  # on threads it may be another one
                call.do(call.nbytes // 2)
            os._exit(CRASHED)
        return call.do()


class Power:
    """Follows what is on the disk.

    Args:
        checkpoints: the folder.

    Attributes:
        disk: from the first call on.
    """

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints
        self._lock = threading.Lock()
        self.is_armed = False
        self.disk: Disk | None = None

    def handle(self, call: Call) -> Any:
        """Does the call."""
        if not self.is_armed:
            return call.do()
        with self._lock:
            if self.disk is None:
                self._checkpoints.mkdir(exist_ok=True)
                self.disk = Disk(self._checkpoints)
            return self.disk.handle(call)


def program(settings: Settings, prepare: Callable[[Any], None] = lambda engine: None) -> None:
    """The program without a picture of its curve; ``prepare`` gets the engine."""
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    engine = make_engine(settings)
    prepare(engine)
    engine.learn()


@dataclass(frozen=True)
class Case:
    """A variant, and what it begins with.

    Attributes:
        name: of the variant.
        async_save: the checkpoint is written beside training.
        folder: of the case.
        calls: that the checkpoint makes.
        record: of the run that was left alone.
    """

    name: str
    async_save: bool
    folder: Path
    calls: list[Call] = field(default_factory=list[Call])
    record: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def variant(self) -> Variant:
        """Of that name."""
        return VARIANTS[self.name]

    @property
    def points(self) -> list[tuple[int, bool]]:
        """Number of each call; twice where it writes, for before it and after half of its bytes."""
        halves = [(number, True) for number, call in enumerate(self.calls) if call.function == "write"]
        return sorted([(number, False) for number in range(len(self.calls))] + halves)

    def settings(self, place: str, **runtime: Any) -> Settings:
        """Of a start in a folder of the case."""
        return Settings(str(self.folder / place), runtime=SMALL | self.variant.runtime | runtime)

    def interrupted(self, place: str, handler: Handler, last: Callable[[DiskCalls], None] = lambda disk: None) -> Child:
        """The start that makes the checkpoint, and comes to its end unless the handler ends it.

        Args:
            place: folder of the run.
            handler: gets all calls.
            last: is called at the end.
        """
        variant = self.variant
        episode = 2 if variant.resumed else variant.before + 1
        settings = self.settings(place, **variant.resumed)

        def arm(info: Any) -> None:
            handler.is_armed = not variant.crashed_at

        def end(disk: DiskCalls, info: Any) -> None:
            if info.episode + 1 == (episode + 1 if self.async_save else episode):  # it is complete with the next one
                last(disk)
                os._exit(0)

        def start(settings: Settings) -> None:
            disk = DiskCalls(settings.run / "checkpoints", handler.handle)
            handler.is_armed = bool(variant.crashed_at)
            program(
                settings,
                lambda engine: engine.add_callback("after_log", arm).add_callback("after_save", partial(end, disk)),
            )
            last(disk)

        return Child(replace(settings, async_save=self.async_save), function=start)


def prepared(name: str, async_save: bool, folder: Path) -> Case:
    """Makes what the points of a variant begin with, in ``template/``, and the run that is left alone.

    Raises:
        RuntimeError: something goes past the patched functions, or a start fails.
    """
    case = Case(name, async_save, folder / f"{name}-{'beside' if async_save else 'in-line'}")
    _expect(Child(case.settings("alone"), function=program), 0)
    template = case.settings("template")
    Path(template.folder).mkdir(parents=True)
    if before := case.variant.before:

        def end(info: Any) -> None:
            if info.episode + 1 == before:
                os._exit(CRASHED)

        _expect(
            Child(template, function=partial(program, prepare=lambda e: e.add_callback("after_save", end))), CRASHED
        )
    if pattern := case.variant.crashed_at:
        _expect(
            replace(case, name="replacing", async_save=False).interrupted("template", Crash(pattern=pattern)), CRASHED
        )
    shutil.copytree(template.folder, case.folder / "counted")
    crash, file = Crash(), case.folder / "calls"

    def tell(disk: DiskCalls) -> None:
        past = [*disk.past, *uncounted(crash.calls, case.settings("counted").run / "checkpoints")]
        file.write_bytes(pickle.dumps((past, crash.calls)))

    _expect(case.interrupted("counted", crash, tell), 0)
    past, calls = pickle.loads(file.read_bytes())
    if past:
        raise RuntimeError(f"{case.folder.name}: past the patched functions: {', '.join(past)}")
    return replace(case, calls=calls, record=record_of(case.settings("alone").run))


def uncounted(calls: Iterable[Call], checkpoints: Path) -> list[str]:
    """Files of the checkpoints that the calls have made, but with fewer or more bytes; those of modules' own apart."""
    nbytes: Counter[str] = Counter()
    made: dict[str, str] = {}
    for call in calls:
        if call.function == "write":
            nbytes[call.path] += call.nbytes
        if call.function == "rename" and call.path.endswith(".partial"):
            made[call.to] = call.path
    files = [file for to in made for file in (checkpoints / to).glob("*") if file.is_file()]
    sizes = {f"{made[file.parent.name]}/{file.name}": file.stat().st_size for file in files}
    return [f"{name}: {nbytes[name]} of {size} bytes" for name, size in sizes.items() if nbytes[name] != size]


def _expect(child: Child, *codes: int) -> None:
    ended = child.end()
    if ended.code not in codes:
        raise RuntimeError(f"{child.settings.folder} ended with {ended.code} instead of {codes}:\n{ended.output}")


@dataclass
class Told:
    """What came of a point.

    Attributes:
        point: in words.
        origin: which checkpoint the run went on from.
        problems: what is not as it should be.
    """

    point: str
    origin: str
    problems: list[str] = field(default_factory=list[str])


def crashed(case: Case, point: tuple[int, bool]) -> Told:
    """Interrupts the checkpoint at a point and resumes the run."""
    number, half = point
    words = f"{'half of' if half else 'before'} call {number}, {case.calls[number]}"
    place = f"point-{os.getpid()}"
    _make_anew(case.folder / place, case.folder / "template")
    ended = case.interrupted(place, Crash(number, half)).end()
    if ended.code == 0 and case.async_save:
        return Told(words, "was not reached")  # threads take turns as they like
    if ended.code != CRASHED:
        return Told(words, "", [f"it ended with {ended.code}: {ended.output[-2000:]}"])
    lost = lost_checkpoints(case, place)
    told = resumed(case, place, words)
    return replace(told, problems=[*lost, *told.problems])


def lost_checkpoints(case: Case, place: str) -> list[str]:
    """Good checkpoints that are not there any more, while the new one is not the newest yet."""
    before, after = (case.settings(name).run / "checkpoints" for name in ("template", place))
    new = f"episode-{case.variant.before + 1:06d}"
    if (after / "latest").exists() and (after / "latest").read_text().strip() == new:
        return []
    return [f"{name} is lost" for name in sorted(_good(before) - _good(after))]


def _good(checkpoints: Path) -> set[str]:
    """Names of the checkpoints without damage; one that is just being replaced counts too."""
    folders = [*checkpoints.glob("episode-*"), *checkpoints.glob(".episode-*.replaced")]
    return {path.name.strip(".").removesuffix(".replaced") for path in folders if not verify(path)}


def resumed(case: Case, place: str, words: str) -> Told:
    """Resumes a run that was interrupted."""
    settings = case.settings(place)
    ended = Child(settings, function=program).end()
    if ended.code:
        return Told(words, "", [f"the resumed run ended with {ended.code}: {ended.output[-2000:]}"])
    found = re.search(r"Going on from .*(episode-\d+)", ended.output)
    problems = differences(case.record, record_of(settings.run))
    if found is None and case.variant.before:
        problems.append("it began anew though there was a checkpoint")
    if "which is not there any more" in ended.output:
        problems.append("the pointer named a checkpoint that is not there")
    return Told(words, found[1] if found else "the beginning", problems)


def powerless(case: Case, stride: int = 1) -> list[Told]:
    """Resumes a run from all that a failure of the power may leave of the checkpoint, or from every ``stride``-th of
    these states, the last one included.
    """
    file = case.folder / "states"
    _make_anew(case.folder / "power", case.folder / "template")
    power = Power(case.settings("power").run / "checkpoints")

    def tell(disk: DiskCalls) -> None:
        power.is_armed = False
        file.write_bytes(pickle.dumps([] if power.disk is None else power.disk.states))

    _expect(case.interrupted("power", power, tell), 0)
    result = case.settings("power").run / "result.json"  # as it was before the run had finished
    result.write_text(json.dumps(json.loads(result.read_text()) | {"status": "running"}))
    told: list[Told] = []
    for call, which, tree in pickle.loads(file.read_bytes())[::-stride]:
        _make_anew(case.folder / "dark", case.folder / "power")
        make_tree(tree, case.settings("dark").run / "checkpoints")
        told.append(resumed(case, "dark", f"power fails after {call}, {which} on the disk"))
    return told


def _make_anew(folder: Path, template: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)


def inject(case: Case, processes: ProcessPoolExecutor, stride: int = 1, begin: int = 0) -> list[Told]:
    """Goes through every ``stride``-th point of a case."""
    points = case.points[begin::stride]
    return list(processes.map(crashed, repeat(case), points, chunksize=4))


def row(case: Case, kind: str, told: list[Told]) -> str:
    """A line of the table."""
    writing = "beside" if case.async_save else "in line"
    origins = Counter(each.origin for each in told)
    bad = sum(bool(each.problems) for each in told)
    went_on = ", ".join(f"{origin}: {number}" for origin, number in sorted(origins.items()))
    return f"| {case.variant.what} | {writing} | {kind} | {len(told)} | {went_on} | {len(told) - bad} |"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Interrupt a checkpoint at every call of the operating system.")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--stride", type=int, default=1, help="take every n-th point")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    lines = [
        "| checkpoint | written | interrupted | points | the run went on from | exact |",
        "|---|---|---|---:|---|---:|",
    ]
    print("\n".join(lines), flush=True)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="crash-points-") as name, pool(options.jobs) as processes:
        for variant, async_save in product(options.variants.split(","), (False, True)):
            case = processes.submit(prepared, variant, async_save, Path(name)).result()
            kinds = {"by a crash": inject(case, processes, options.stride)}
            if not case.variant.crashed_at:
                kinds["by the power"] = processes.submit(powerless, case).result()
            for kind, told in kinds.items():
                lines.append(row(case, kind, told))
                print(lines[-1], flush=True)
                problems += [
                    f"{case.folder.name}: {each.point}: {'; '.join(each.problems)}" for each in told if each.problems
                ]
    last = f"{len(problems)} points were not as they should be."
    print("\n".join(["", *problems[:20], "…" if len(problems) > 20 else "", last]))
    if options.out:
        options.out.write_text("\n".join([*lines, "", *problems, last, ""]), encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
