"""Checkpoints are damaged, or don't fit the program: each is named with the file and what differs, the newest one that
works is offered, and nothing is overwritten.

Every damage is done to the newest checkpoint of a run that was killed. A resume then has to fail with a CheckpointError
that says what is wrong; the run's folder is as it was before; and the checkpoint that the error offers
(``runtime.resume=PATH``) brings the run to the record of the one that was left alone. Where it is the program that has
changed, the program as it was goes on.

    python tests/chaos/damage.py -o table.md

The program ends with 1 if any of this does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

from crash_points import CRASHED, SMALL, program
from kill_children import Child, Ended, pool
from kill_program import Settings
from kill_records import differences, record_of, tree_of

NEWEST, BEFORE = "episode-000003", "episode-000002"
KEPT = {**SMALL, "num_episode": 4, "max_data_ckpt_nums": None}


@dataclass(frozen=True)
class Damage:
    """What is wrong.

    Attributes:
        words: pattern that the error has to match.
        do: gets the folder of the checkpoints and, for some, that of another run's.
        changed: what the program that resumes has changed, of :data:`kill_program.CHANGES`.
        foreign: what the program of the other run had changed.
        offered: name of the checkpoint that the error offers; empty where the program is what has changed.
        goes_on: nothing can be lost, so the run itself goes on from that checkpoint, and a note tells what is wrong.
    """

    words: str
    do: Callable[[Path, Path], None] = lambda checkpoints, others: None
    changed: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    offered: str = BEFORE
    goes_on: bool = False


def _cut(name: str, share: float = 0.5) -> Callable[[Path, Path], None]:
    def do(checkpoints: Path, others: Path) -> None:
        path = checkpoints / NEWEST / name
        os.truncate(path, int(path.stat().st_size * share))

    return do


def _flip(name: str, share: float = 0.7) -> Callable[[Path, Path], None]:
    """Changes one bit of a byte."""

    def do(checkpoints: Path, others: Path) -> None:
        path = checkpoints / NEWEST / name
        data = bytearray(path.read_bytes())
        data[int(len(data) * share)] ^= 1
        path.write_bytes(data)

    return do


def _delete(name: str) -> Callable[[Path, Path], None]:
    def do(checkpoints: Path, others: Path) -> None:
        path = checkpoints / NEWEST / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def _set_format(number: int) -> Callable[[Path, Path], None]:
    def do(checkpoints: Path, others: Path) -> None:
        for name in ("manifest.json", "run.json"):
            path = checkpoints / NEWEST / name
            path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))

    return do


def _older(checkpoints: Path, others: Path) -> None:
    """As the first format had it: no list of files, one file of tensors for each module."""
    _set_format(1)(checkpoints, others)
    (checkpoints / NEWEST / "manifest.json").unlink()
    for path in (checkpoints / NEWEST).glob("*.rank0.safetensors"):
        path.rename(path.with_name(path.name.replace(".rank0", "")))


def _swap(checkpoints: Path, others: Path) -> None:
    name = "actor.state.rank0.safetensors"
    shutil.copy(checkpoints / BEFORE / name, checkpoints / NEWEST / name)


def _exchange(checkpoints: Path, others: Path) -> None:
    shutil.rmtree(checkpoints / NEWEST)
    shutil.copytree(others / NEWEST, checkpoints / NEWEST)


def _rename(checkpoints: Path, others: Path) -> None:
    shutil.rmtree(checkpoints / NEWEST)
    shutil.copytree(checkpoints / BEFORE, checkpoints / NEWEST)


def _folder_for_a_file(checkpoints: Path, others: Path) -> None:
    path = checkpoints / NEWEST / "critic.state.rank0.safetensors"
    path.unlink()
    path.mkdir()


def _both(checkpoints: Path, others: Path) -> None:
    """The two newest are damaged."""
    _flip("actor.state.rank0.safetensors")(checkpoints, others)
    (checkpoints / BEFORE / "run.json").unlink()


def _garbage(checkpoints: Path, others: Path) -> None:
    (checkpoints / "latest").write_bytes(b"\0\xff\xfe")


KINDS: dict[str, Damage] = {
    "a file of tensors is cut off": Damage(
        rf"{NEWEST}/actor\.state\.rank0\.safetensors is cut off", _cut("actor.state.rank0.safetensors")
    ),
    "an empty file": Damage(rf"{NEWEST}/run\.json", _cut("run.json", 0)),
    "a flipped bit in tensors": Damage(
        rf"{NEWEST}/critic\.state\.rank0\.safetensors is damaged: the checksum", _flip("critic.state.rank0.safetensors")
    ),
    "a flipped bit in the header of tensors": Damage(
        rf"{NEWEST}/critic\.state\.rank0\.safetensors", _flip("critic.state.rank0.safetensors", 0.01)
    ),
    "a flipped bit in JSON": Damage(rf"{NEWEST}/actor\.state\.json is damaged", _flip("actor.state.json")),
    "a flipped bit in the counters": Damage(rf"{NEWEST}/run\.json", _flip("run.json", 0.02)),
    "a flipped bit in replayed episodes": Damage(
        rf"{NEWEST}/replay\.rank0\.safetensors is damaged", _flip("replay.rank0.safetensors")
    ),
    "a file is missing": Damage(
        rf"{NEWEST}/critic\.state\.rank0\.safetensors is missing", _delete("critic.state.rank0.safetensors")
    ),
    "what modules share is missing": Damage(rf"{NEWEST}/shared\.json is missing", _delete("shared.json")),
    "a module's own file is missing": Damage(
        rf"{NEWEST}/judge\.files/history/rewards\.txt is missing", _delete("judge.files/history/rewards.txt")
    ),
    "a module's own files are missing": Damage(rf"{NEWEST}/judge\.files/\S+ is missing", _delete("judge.files")),
    "a module's own file is damaged": Damage(
        rf"{NEWEST}/judge\.files/counts\.json is damaged", _flip("judge.files/counts.json")
    ),
    "the list of files is missing": Damage(rf"{NEWEST}/manifest\.json", _delete("manifest.json")),
    "the list of files is damaged": Damage(rf"{NEWEST}/manifest\.json", _flip("manifest.json", 0.5)),
    "the list of files is cut off": Damage(rf"{NEWEST}/manifest\.json", _cut("manifest.json")),
    "a newer format": Damage(rf"{NEWEST} has format 3, of a newer", _set_format(3)),
    "an older format": Damage(rf"{NEWEST} has format 1, of an older", _older),
    "a file of another episode": Damage(rf"{NEWEST}/actor\.state\.rank0\.safetensors is", _swap),
    "a folder in the place of a file": Damage(
        rf"{NEWEST}/critic\.state\.rank0\.safetensors (is no file|can't be read)", _folder_for_a_file
    ),
    "the folder is gone": Damage(
        rf"checkpoints/latest names '{NEWEST}', which is not there any more; the newest that is left is {BEFORE}",
        _delete(""),
        goes_on=True,
    ),
    "the folder is that of another episode": Damage(rf"{NEWEST} is the checkpoint of episode 2", _rename),
    "the pointer is garbage": Damage(
        rf"checkpoints/latest names .*, which is not there any more; the newest that is left is {NEWEST}",
        _garbage,
        offered=NEWEST,
        goes_on=True,
    ),
    "the two newest are damaged": Damage(
        rf"{NEWEST}/actor\.state\.rank0\.safetensors is damaged", _both, offered="episode-000001"
    ),
    "of a run with another model size": Damage(
        rf"{NEWEST} was written under other settings(?s:.*)\n *models\.critic\.args\.width was 16",
        _exchange,
        foreign=("width",),
    ),
    "of a run with one module more": Damage(rf"{NEWEST} .*\n?.*echo", _exchange, foreign=("module",)),
    "the program has another model size": Damage(
        rf"{NEWEST} was written under other settings(?s:.*)\n *models\.critic\.args\.width was .* and is 16",
        changed=("width",),
        offered="",
    ),
    "the program has another class": Damage(
        rf"{NEWEST} was written under other settings.*\n *classes\.actor was .*Actor.* and is .*OtherActor",
        changed=("class",),
        offered="",
    ),
    "the program has one module more": Damage(rf"{NEWEST} .*\n?.*echo", changed=("module",), offered=""),
    "the program has other prompts": Damage(
        rf"{NEWEST} was written under other settings.*\n *datasets\.train was .* and is",
        changed=("prompts",),
        offered="",
    ),
}


@dataclass
class Told:
    """What came of a damage.

    Attributes:
        kind: of damage.
        error: what the resume has said of it.
        problems: what should have been otherwise.
    """

    kind: str
    error: str = ""
    problems: list[str] = field(default_factory=list[str])

    @property
    def row(self) -> str:
        """A line of the table."""
        return f"| {self.kind} | {self.error} | {'; '.join(self.problems) or 'named, offered, exact'} |"


def prepared(folder: Path) -> dict[str, object]:
    """Makes the runs that are damaged, and the one that is left alone; returns its record.

    Raises:
        RuntimeError: one of them fails.
    """
    for name, changed in {"killed": (), "width": ("width",), "module": ("module",)}.items():
        child = Child(Settings(str(folder / name), runtime=KEPT, changed=changed), function=_killed)
        if child.end().code != CRASHED:
            raise RuntimeError(f"{name} was not killed:\n{child.end().output}")
    alone = Settings(str(folder / "alone"), runtime=KEPT)
    if (ended := Child(alone, function=program).end()).code:
        raise RuntimeError(f"the run that was left alone failed:\n{ended.output}")
    return record_of(alone.run)


def _killed(settings: Settings) -> None:
    def end(info: object) -> None:
        if getattr(info, "episode", 0) + 1 == int(NEWEST[-6:]):
            os._exit(CRASHED)

    program(settings, lambda engine: engine.add_callback("after_save", end))


def damaged(kind: str, folder: Path, record: dict[str, object]) -> Told:
    """Damages a checkpoint, resumes the run, and goes on with what is offered."""
    damage, told = KINDS[kind], Told(kind)
    settings = Settings(str(folder / f"case-{os.getpid()}"), runtime=KEPT, changed=damage.changed)
    shutil.rmtree(settings.folder, ignore_errors=True)
    shutil.copytree(folder / "killed", settings.folder)
    checkpoints = settings.run / "checkpoints"
    damage.do(checkpoints, folder.joinpath(*damage.foreign[:1], "run", "checkpoints"))
    before = _tree(settings.run)
    ended = Child(settings, function=program).end()
    if damage.goes_on:
        found = re.search(r"^note: (.*/latest names.*)$", ended.output, re.MULTILINE)
        told.error = found[1].replace(f"{checkpoints}/", "") if found else ""
        told.problems += _said(damage, ended, 0, rf"Going on from .*{damage.offered}\.$")
        return replace(told, problems=told.problems or differences(record, record_of(settings.run)))
    told.error = _error(ended.output).replace(f"{checkpoints}/", "").replace("\n", "<br>")
    offer = rf"runtime\.resume=(\S*{damage.offered})$" if damage.offered else r"\Z"
    told.problems += _said(damage, ended, 1, offer)
    after = _tree(settings.run)
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        told.problems.append(f"it has changed {', '.join(changed)}")
    if not told.problems:
        found = re.search(offer, ended.output, re.MULTILINE)
        resume = found[1] if damage.offered and found else "auto"
        told.problems += _goes_on(replace(settings, changed=(), resume=resume), record)
    return told


def _said(damage: Damage, ended: Ended, code: int, way_on: str) -> list[str]:
    """What a start should have said and has not."""
    text = ended.output if damage.goes_on else _error(ended.output)
    problems = [] if ended.code == code else [f"it ended with {ended.code}: {' '.join(ended.output.split()[-30:])}"]
    missing = [words for words in (damage.words, way_on) if not re.search(words, text, re.MULTILINE)]
    problems += [f"it did not say {words!r}" for words in missing]
    if not damage.offered and "runtime.resume=/" in text:
        problems.append("it offered a checkpoint that does not work either")
    return problems


def _tree(run: Path) -> dict[str, str]:
    """All that a run has made. What a start says of itself may be new."""
    return {name: digest for name, digest in tree_of(run).items() if name not in _OF_A_START}


_OF_A_START = ("config.yaml", "program.json", "result.json", "run.lock")


def _error(output: str) -> str:
    """What the program has said at its end."""
    found = re.search(r"^chatlearn\.errors\.CheckpointError: (.*)\Z", output, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""


def _goes_on(settings: Settings, record: dict[str, object]) -> list[str]:
    ended = Child(settings, function=program).end()
    if ended.code:
        return [f"then it ended with {ended.code}: {' '.join(ended.output.split()[-40:])}"]
    return differences(record, record_of(settings.run))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Damage checkpoints, and see what a resume says and does.")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    lines = ["| damage | what the resume says | and does |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="damage-") as name, pool(options.jobs) as processes:
        record = processes.submit(prepared, Path(name)).result()
        for told in processes.map(damaged, KINDS, repeat(Path(name)), repeat(record)):
            bad += bool(told.problems)
            lines.append(told.row.replace(name, ""))
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{len(KINDS) - bad} of {len(KINDS)} kinds of damage are named, nothing is overwritten, a way on is offered.",
    ]
    print("\n".join(lines[-2:]))
    if options.out:
        options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
