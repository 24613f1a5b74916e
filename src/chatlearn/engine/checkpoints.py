"""The checkpoints of a run: when one is due, what goes into it, and how a run goes on from one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.disk import remove
from chatlearn.checkpoint.files import load_state, take_snapshot, write_snapshot
from chatlearn.checkpoint.identity import Change, Line, check_same_identity
from chatlearn.checkpoint.manifest import damage
from chatlearn.checkpoint.module_state import finish_saving, has_saved, load_module, remember_setup, save_module
from chatlearn.checkpoint.run_folder import RunFolder
from chatlearn.checkpoint.store import CheckpointStore, RunState, read_run_state
from chatlearn.checkpoint.verify import verify
from chatlearn.checkpoint.writing import Files, Writing
from chatlearn.config.schema import Config
from chatlearn.data.fingerprint import fingerprint
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.replay import Replay
from chatlearn.errors import CheckpointError
from chatlearn.modules.base import BaseModule


@dataclass(frozen=True)
class Kept:
    """What a run consists of, as far as its checkpoints are concerned.

    Attributes:
        modules: of all flows, by name.
        trained: names of those whose whole state is kept.
        synced: names of those that get their ``model`` by parameter sync -> episodes between two syncs.
        drifting: names of the synced ones whose weights need not be those of the last sync when an episode ends.
        replay: experience of several episodes, where that is trained on.
        datasets: such as ``train`` or ``train.0`` -> prompts.
    """

    modules: Mapping[str, BaseModule] = field(default_factory=dict[str, BaseModule])
    trained: Collection[str] = ()
    synced: Mapping[str, int] = field(default_factory=dict[str, int])
    drifting: Collection[str] = ()
    replay: Replay | None = None
    datasets: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])


@dataclass
class _Unfinished:
    """A checkpoint that is being written."""

    aside: Path
    state: RunState
    extra: dict[str, Any]
    is_best: bool
    modules: list[str] = field(default_factory=list[str])
    saved: list[str] = field(default_factory=list[str])
    own: Writing | None = None


class Checkpoints:
    """The checkpoints of a run.

    Args:
        config: resolved.
        folder: claimed for the run.
        kept: what goes into them.
    """

    def __init__(self, config: Config, folder: RunFolder, kept: Kept) -> None:
        self._config, self._folder, self._kept = config, folder, kept
        self._store = CheckpointStore(folder.checkpoints)
        self._unfinished: _Unfinished | None = None
        self._changes: list[dict[str, Any]] = []
        self._last = time.monotonic()

    @property
    def begins_anew(self) -> bool:
        """Whether there is no checkpoint to go on from."""
        return self._folder.checkpoint is None

    # -- going on --

    def check(self) -> list[str]:
        """Compares the program with that of the checkpoint to go on from, before anything starts or is written.

        Returns:
            Notes about what differs and may do so.

        Raises:
            CheckpointError: the checkpoint is damaged (the newest one that works is named), or the program differs in
                what decides the numbers of the run.
        """
        checkpoint = self._folder.checkpoint
        if checkpoint is None:
            return []
        if problems := verify(checkpoint, deep=False):
            raise CheckpointError("\n".join([*problems, self._store.offer(besides=checkpoint)]))
        try:
            changes = self._changes_since(checkpoint)
        except CheckpointError as error:
            if (other := self._fitting(besides=checkpoint)) is None:
                raise
            raise CheckpointError(f"{error}\nThe newest checkpoint that works: runtime.resume={other}") from None
        state, content = read_run_state(checkpoint)
        made = [{"episode": state.episode, **change.as_dict()} for change in changes]
        self._changes = [*content["changes"], *made]
        notes = [f"{each}, which runtime.allow_change allows; checkpoints keep a record of it." for each in changes]
        was, now = content["config"]["runtime"]["num_episode"], self._config.runtime.num_episode
        if was != now:
            notes.append(f"runtime.num_episode was {was} and is {now}: schedules for a whole run are now for {now}.")
        return notes

    def _fitting(self, besides: Path) -> Path | None:
        """The newest other checkpoint that is of this program, and works."""
        for checkpoint in reversed(self._store.all()):
            if checkpoint != besides and not verify(checkpoint, deep=False):
                with suppress(CheckpointError):
                    self._changes_since(checkpoint)
                    return checkpoint if not damage(checkpoint) else None
        return None

    def _changes_since(self, checkpoint: Path) -> list[Change]:
        """What differs of the program and is allowed to."""
        content = read_run_state(checkpoint)[1]
        has_state = [name for name, module in content["modules"].items() if module["saved"]]
        if gone := sorted(set(has_state) - set(self._kept.modules)):
            raise CheckpointError(
                f"{checkpoint} holds the state of {', '.join(gone)}, but no flow uses such a module. Resume with the "
                f"program that wrote it, or start a new run."
            )
        saved = content["config"]
        common = [name for name in self._kept.modules if name in saved["models"]]
        before = {**saved, "models": {name: saved["models"][name] for name in common}}
        lines = {name: Line(tuple(module["class"]), module["saved"]) for name, module in content["modules"].items()}
        before |= {"classes": {name: line.of(self._lines.get(name)) for name, line in lines.items()}}
        before |= {"datasets": content["datasets"]}
        classes = {name: line.name for name, line in self._lines.items()}
        now = {**self._settings_of(common), "classes": classes, "datasets": self._datasets}
        return check_same_identity(checkpoint, before, now, self._config.runtime.allow_change)

    def restore(self, deployment: Deployment) -> RunState:
        """Restores modules and counters from the checkpoint, if there is one.

        Raises:
            CheckpointError: it is damaged or does not fit; the newest one that works is named.
        """
        for name in deployment.names:
            if name not in self._kept.trained:
                deployment.ensure([name])
                deployment.apply_first(name, remember_setup, self._comes_by_sync(name, 0), lasts=True)
        checkpoint = self._folder.checkpoint
        if checkpoint is None:
            return RunState(position=self._config.runtime.consumed_samples)
        try:
            return self._restored(deployment, checkpoint)
        except CheckpointError as error:
            text = f"{error}\n{self._store.offer(besides=checkpoint)}"
            raise CheckpointError(text).with_traceback(error.__traceback__) from error.__cause__

    def _restored(self, deployment: Deployment, checkpoint: Path) -> RunState:
        state, content = read_run_state(checkpoint)
        for name, module in content["modules"].items():
            if module["saved"]:
                if not any((checkpoint / f"{name}.{part}").exists() for part in ("state.json", "files")):
                    raise CheckpointError(f"{checkpoint / name}.state.json is missing.")
                deployment.occupy([name])
                deployment.apply(name, load_module, str(checkpoint), state.episode, lasts=True)
        if problems := [line for part in ("shared.", "replay.") for line in damage(checkpoint, part)]:
            raise CheckpointError("\n".join(problems))
        if (checkpoint / "shared.json").exists():
            deployment.restore_shared(load_state(checkpoint / "shared"))
        if self._kept.replay is not None:
            self._kept.replay.load(load_state(checkpoint / "replay"))
        self._store.point_to(checkpoint.name)  # an older one, perhaps: what came after it is replaced
        if state.best_value is not None and self._store.has(state.best_episode):
            self._store.mark_best(state.best_episode)  # a kill may have come between the two pointers
        if checkpoint == next(reversed(self._store.all()), None):
            self._store.prune(self._config.runtime.max_data_ckpt_nums)
        return state

    def restores_weights(self, name: str) -> bool:
        """Whether the weights of a synced module came from a checkpoint, so that the first sync has to spare them."""
        return name in self._kept.drifting and self._folder.checkpoint is not None

    # -- saving --

    def is_due(self, state: RunState) -> bool:
        """Whether the episode that was just completed ends with a checkpoint."""
        runtime = self._config.runtime
        interval, minutes = runtime.save_episode_interval, runtime.save_minutes_interval
        if interval and state.episode % interval == 0:
            return True
        return minutes is not None and time.monotonic() - self._last >= 60 * minutes

    def save(self, deployment: Deployment, state: RunState, *, is_best: bool = False) -> None:
        """Writes a checkpoint of the current state; with ``runtime.async_save`` a copy of it is written while the run
        goes on, and :meth:`commit` ends that.

        Raises:
            CheckpointError: this one, or the one before, can't be written; earlier ones are as they were.
        """
        self.commit(deployment)
        deployment.settle()
        saved: dict[str, bool] = {}
        asynchronous = self._config.runtime.async_save
        state = replace(state, generation_batches=dict(state.generation_batches))
        aside = self._store.begin(state.episode)
        unfinished = _Unfinished(aside, state, {}, is_best)
        try:
            for name in deployment.names:
                deployment.occupy([name])
                is_kept, is_synced = name in self._kept.trained, self._comes_by_sync(name, state.episode)
                arguments = str(aside), state.episode, is_kept, is_synced, asynchronous
                unfinished.modules.append(name)
                saved[name] = deployment.apply_first(name, save_module, *arguments)
            unfinished.own = Writing(self._own(deployment, aside), aside, "checkpoint", asynchronous)
            unfinished.extra = self._extra(deployment, saved)
            unfinished.saved = [name for name in saved if saved[name]]
        except BaseException:
            self._abandon(deployment, unfinished)
            raise
        self._unfinished, self._last = unfinished, time.monotonic()
        if not asynchronous:
            self.commit(deployment)

    def commit(self, deployment: Deployment, *, wait: bool = True) -> None:
        """Ends the checkpoint that is being written, if there is one and it is written (``wait``: as soon as it is).

        Raises:
            CheckpointError: it can't be written; earlier ones are as they were.
        """
        unfinished = self._unfinished
        if unfinished is None or not (wait or self._is_written(deployment, unfinished)):
            return
        self._unfinished = None
        try:
            known: Files = {} if unfinished.own is None else unfinished.own.result()
            for name in unfinished.saved:
                files = deployment.apply_first(name, finish_saving)
                if files is None:
                    print(
                        f"note: the checkpoint of episode {unfinished.state.episode} is left out: the process of "
                        f"{name} was replaced while it was being written.",
                        flush=True,
                    )
                    self._abandon(deployment, unfinished)
                    return
                known |= files
            self._store.commit(unfinished.aside, unfinished.state, unfinished.extra, known)
        except BaseException:
            self._abandon(deployment, unfinished)
            raise
        if unfinished.is_best:
            self._store.mark_best(unfinished.state.episode)
        self._store.prune(self._config.runtime.max_data_ckpt_nums)

    def _is_written(self, deployment: Deployment, unfinished: _Unfinished) -> bool:
        if unfinished.own is not None and not unfinished.own.has_ended:
            return False
        return all(deployment.apply_first(name, has_saved) for name in unfinished.saved)

    def _abandon(self, deployment: Deployment, unfinished: _Unfinished) -> None:
        """Removes what was written of a checkpoint, once nobody writes to it any more."""
        for name in unfinished.modules:
            with suppress(Exception):  # the error that is on its way says more
                deployment.control_first(name, finish_saving)
        if unfinished.own is not None:
            with suppress(Exception):
                unfinished.own.result()
        remove(unfinished.aside)

    def _own(self, deployment: Deployment, aside: Path) -> Callable[[], Files]:
        """What writes the driver's part: what modules share, also from the next episode on, and replayed episodes."""
        parts: list[tuple[str, Any]] = []
        if deployment.shared or deployment.puts:
            parts.append(("shared", {**deployment.shared, **deployment.puts}))
        if self._kept.replay is not None:
            parts.append(("replay", self._kept.replay.state()))
        snapshots = [(aside / name, take_snapshot(part)) for name, part in parts]

        def write() -> Files:
            return {name: file for stem, part in snapshots for name, file in write_snapshot(part, stem).items()}

        return write

    def _extra(self, deployment: Deployment, saved: Mapping[str, bool]) -> dict[str, Any]:
        return {
            "modules": {
                name: {"class": list(line.classes), "saved": saved[name]}
                for name, line in self._lines.items()
                if name in saved
            },
            "datasets": self._datasets,
            "config": self._settings_of(deployment.names),
            "run": str(self._folder.path),
            "changes": self._changes,
        }

    def _comes_by_sync(self, name: str, episode: int) -> bool:
        """Whether a module's weights are those of the sync that such an episode ends with."""
        frequency = None if name in self._kept.drifting else self._kept.synced.get(name)
        return frequency is not None and episode % frequency == 0

    def _settings_of(self, names: Collection[str]) -> dict[str, Any]:
        """The configuration as plain data, with the whole section of every module, given or not."""
        models = {name: self._config.model(name).model_dump(mode="json") for name in names}
        return {**self._config.model_dump(mode="json"), "models": models}

    @property
    def _lines(self) -> dict[str, Line]:
        return {name: Line.of_class(type(module)) for name, module in self._kept.modules.items()}

    @cached_property
    def _datasets(self) -> dict[str, str]:
        return {name: fingerprint(prompts) for name, prompts in self._kept.datasets.items()}
