"""Checkpoints of a run: complete or absent, written aside and renamed; ``latest`` and ``best`` are pointers."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.disk import Written, read_json, remove, replace_text, unwritable, write_json
from chatlearn.checkpoint.manifest import FORMAT, damage, is_complete, other_format, seal
from chatlearn.errors import CheckpointError

_NAME = re.compile(r"episode-\d{6,}")


@dataclass
class RunState:
    """All counters and positions of a run.

    Attributes:
        episode: episodes that are complete.
        position: the sampler's, in samples.
        generation_batches: module -> generation batches that it has been given, over the whole run.
        global_batches: training batches, over the whole run, all epochs counted.
        weight_version: of the weights published last.
        best_of: ``runtime.best_metric`` and its mode, which the next three are about.
        best_value: of ``runtime.best_metric``, so far; ``None`` before it came for the first time.
        best_episode: complete episodes at that time.
        num_worse: times that the metric has come since then.
    """

    episode: int = 0
    position: int = 0
    generation_batches: dict[str, int] = field(default_factory=dict[str, int])
    global_batches: int = 0
    weight_version: int = 0
    best_of: str | None = None
    best_value: float | None = None
    best_episode: int = 0
    num_worse: int = 0


class CheckpointStore:
    """A folder of checkpoints: usually ``checkpoints/`` of a run.

    Args:
        folder: made when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return [path for _, path in sorted(self._named().items())]

    def latest(self) -> Path | None:
        """The checkpoint that was written last; where that is not there any more, the one with most episodes."""
        return self._named().get(self.pointed("latest")) or next(reversed(self.all()), None)

    def loss(self) -> str:
        """What to say where the checkpoint that was written last is not there any more; else empty."""
        name, found = self.pointed("latest"), self.latest()
        if not name or name in self._named():
            return ""
        rest = "there is no other" if found is None else f"the newest that is left is {_shown(found)}"
        return f"note: {self._folder / 'latest'} names {name!r}, which is not there any more; {rest}."

    def offer(self, besides: Path | None = None) -> str:
        """How to go on from the newest checkpoint without damage; all files of those that are newer are read."""
        found = self.working(besides)
        if found is None:
            return "No other checkpoint of the run works. Start anew with runtime.resume=never."
        return f"The newest checkpoint that works: runtime.resume={found}"

    def best(self) -> Path | None:
        """The checkpoint with the best metric."""
        return self._named().get(self.pointed("best"))

    def pointed(self, pointer: str) -> str:
        """The name that a pointer holds; empty without one."""
        path = self._folder / pointer
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""

    def find(self, episode: int | None) -> Path | None:
        """The checkpoint after so many episodes; ``None``: the newest, if there is one.

        Raises:
            CheckpointError: there are checkpoints, but none of that number; those that exist are listed.
        """
        if episode is None:
            return self.latest()
        named = self._named()
        if named and _name(episode) not in named:
            raise CheckpointError(
                f"{self._folder} has no checkpoint of episode {episode}: runtime.load_data_checkpoint_iteration is one "
                f"of {', '.join(str(episode_of(path)) for path in self.all())}."
            )
        return named.get(_name(episode))

    def has(self, episode: int) -> bool:
        """Whether there is a checkpoint after so many episodes."""
        return _name(episode) in self._named()

    def working(self, besides: Path | None = None) -> Path | None:
        """The newest checkpoint without damage; all of its files are read."""
        others = [path for path in reversed(self.all()) if path != besides]
        return next((path for path in others if not damage(path)), None)

    # -- writing --

    @contextmanager
    def write(self, state: RunState, extra: Mapping[str, Any]) -> Generator[Path]:
        """Yields a folder to fill; afterwards it is the newest checkpoint. An exception leaves no trace of it."""
        aside = self.begin(state.episode)
        try:
            yield aside
            self.commit(aside, state, extra)
        except BaseException:
            remove(aside)
            raise

    def begin(self, episode: int) -> Path:
        """An empty folder for the checkpoint after so many episodes, which nobody takes for one until :meth:`commit`.

        Raises:
            CheckpointError: it can't be made.
        """
        aside = self._folder / f".{_name(episode)}.partial"
        remove(aside)
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            raise unwritable(aside, error) from error
        return aside

    def commit(
        self, aside: Path, state: RunState, extra: Mapping[str, Any], known: Mapping[str, Written] | None = None
    ) -> Path:
        """Makes a folder that was filled the newest checkpoint.

        Args:
            aside: of :meth:`begin`.
            state: of the run, when the folder was begun.
            extra: what else ``run.json`` holds.
            known: files that are on the disk already, by their paths in the folder.

        Raises:
            CheckpointError: it can't be written; the checkpoint of that episode, if there was one, still counts.
        """
        name = _name(state.episode)
        final, replaced = self._folder / name, self._folder / f".{name}.replaced"
        content = {"format": FORMAT, "state": asdict(state), **extra}
        seal(aside, {**(known or {}), "run.json": write_json(aside / "run.json", content, sync=False)})
        try:
            if final.exists():
                remove(replaced)
                os.rename(final, replaced)
            os.rename(aside, final)
        except OSError as error:
            raise unwritable(final, error) from error
        self.point_to(name)  # which forces the new name to the disk before the pointer
        remove(replaced)
        return final

    def mark_best(self, episode: int) -> None:
        """Makes the checkpoint after so many episodes the one with the best metric."""
        self.point_to(_name(episode), "best")

    def point_to(self, name: str, pointer: str = "latest") -> None:
        """Makes a complete checkpoint the newest (``latest``), or the one with the best metric (``best``)."""
        replace_text(self._folder / pointer, name + "\n")

    def recover(self) -> None:
        """Puts right what a killed write has left behind. Only for the process that the folder belongs to."""
        for replaced in self._folder.glob(".episode-*.replaced"):
            final = self._folder / _shown(replaced)
            if is_complete(final):
                remove(replaced)
            else:
                remove(final)
                os.rename(replaced, final)
        patterns = (".episode-*.partial", ".episode-*.removed", ".latest.partial", ".best.partial")
        for leftover in [path for pattern in patterns for path in self._folder.glob(pattern)]:
            remove(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    def remove(self, checkpoint: Path) -> None:
        """Deletes a checkpoint; ``latest`` then points to the newest one that is left.

        Raises:
            CheckpointError: it is the only one without damage.
        """
        working = self.working(besides=checkpoint)
        if working is None and not damage(checkpoint):
            raise CheckpointError(f"{checkpoint} is the only checkpoint of the run without damage; it is kept.")
        if self.pointed("latest") == _shown(checkpoint):
            self.point_to(_shown(working)) if working is not None else (self._folder / "latest").unlink()
        if self.pointed("best") == _shown(checkpoint):
            (self._folder / "best").unlink()
        self._delete(checkpoint)

    def prune(self, keep: int | None) -> None:
        """Deletes all but the newest ``keep`` checkpoints (``None``: none), never the best one, and never the one that
        was written last.
        """
        spared = {self.pointed("best"), self.pointed("latest")}
        for folder in self.all()[: -keep if keep else 0]:
            if _shown(folder) not in spared:
                self._delete(folder)

    def _delete(self, checkpoint: Path) -> None:
        """Deletes a checkpoint; what a kill leaves of it is none any more."""
        removed = self._folder / f".{_shown(checkpoint)}.removed"
        remove(removed)
        os.rename(checkpoint, removed)
        remove(removed)

    def _named(self) -> dict[str, Path]:
        """Checkpoints by name; one that was just being replaced stands for itself. They have got their names when they
        were complete.
        """
        folders = [path for path in self._folder.glob("episode-*") if _NAME.fullmatch(path.name) and path.is_dir()]
        replaced = {_shown(path): path for path in self._folder.glob(".episode-*.replaced")}
        return replaced | {path.name: path for path in folders}


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, as far as it is known: the run may have been moved since."""
    if checkpoint.parent.name == "checkpoints" and (checkpoint.parent.parent / "config.yaml").is_file():
        return checkpoint.parent.parent
    written_by = read_json(checkpoint / "run.json").get("run")
    return None if written_by is None else Path(written_by)


def read_run_state(checkpoint: Path) -> tuple[RunState, dict[str, Any]]:
    """The counters of a checkpoint, and what else ``run.json`` holds.

    Raises:
        CheckpointError: damaged, or of a format that this version does not know.
    """
    content = read_json(checkpoint / "run.json")
    try:
        found = content["format"]
        if found == FORMAT:
            return RunState(**content["state"]), content
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / 'run.json'} is damaged: {error!r}.") from error
    raise other_format(checkpoint, found)


def has_name(checkpoint: Path, episode: int) -> bool:
    """Whether a folder is called as the checkpoint after so many episodes is."""
    return _shown(checkpoint) == _name(episode)


def episode_of(checkpoint: Path) -> int:
    """Complete episodes of a checkpoint, by its name."""
    return int(_shown(checkpoint).removeprefix("episode-"))


def _shown(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(".").removesuffix(".replaced")


def _name(episode: int) -> str:
    return f"episode-{episode:06d}"
