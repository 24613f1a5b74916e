"""A part of a finished episode, made once more: a run that starts at a checkpoint, ends with the experience of one
episode, and writes to a folder of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chatlearn.checkpoint.identity import may_change
from chatlearn.checkpoint.run_folder import RunFolder, claim_run_folder
from chatlearn.config.schema import Config
from chatlearn.data.stream import Experience, StreamDataset
from chatlearn.engine.program import note_run
from chatlearn.errors import CheckpointError, EngineError
from chatlearn.guards import is_dict
from chatlearn.observe.sample_log import episode_file, read_lines

if TYPE_CHECKING:
    from chatlearn.engine.deployment import Deployment
    from chatlearn.engine.run import Run

QUIET = (
    "runtime.log_samples=all",
    "runtime.sinks=[]",
    "runtime.trace=false",
    "runtime.export=[]",
    "runtime.profile_episodes=[]",
    "runtime.profiler_dir=null",
    "runtime.save_episode_interval=null",
    "runtime.save_minutes_interval=null",
    "runtime.max_data_ckpt_nums=null",
    "runtime.data_checkpoint_path=null",
    "runtime.early_stop_patience=null",
    "runtime.early_stop_threshold=null",
    "runtime.best_metric=null",
)
"""Settings that a recomputation puts over those of the program: all samples are kept, and nothing else."""

_TELLING = {"runtime.exp_name", "runtime.num_episode"}  # which tell one run from another, and schedules


class Reached(SystemExit):
    """The recomputation has what it needs; the program does not go on."""


@dataclass
class Recomputation:
    """What is made once more, and where.

    Attributes:
        run: folder of the run; nothing in it is touched.
        config: that the run was made with.
        sample: its id.
        episode: that has made it, from 1.
        checkpoint: to start at; ``None`` is the beginning of the run.
        folder: where the recomputed run writes.
        earlier: folders of the runs that the program comes to first.
        episode_ids: the samples of the episode, once they are made.
        has_begun: the program has come to the run.
        is_done: the batch is made and written.
    """

    run: Path
    config: Config
    sample: int
    episode: int
    checkpoint: Path | None
    folder: Path
    earlier: list[Path] = field(default_factory=list[Path])
    episode_ids: frozenset[int] = frozenset()
    has_begun: bool = False
    is_done: bool = False

    @contextmanager
    def claimed(self, config: Config) -> Generator[RunFolder]:
        """The folder for the program's next run. Those before the one that is meant stand as they are.

        Args:
            config: that the program gives the run.

        Raises:
            CheckpointError: the settings are not those of the run.
            Reached: the one that is meant has ended.
        """
        if self.has_begun:
            raise Reached(0)
        if self.earlier:
            path = self.earlier.pop(0)
            yield RunFolder(path, path / "checkpoints", finished=True, note=f"{path} stands as it is.")
            return
        self.has_begun = True
        self._check_settings(config)
        checkpoints = self.folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        yield RunFolder(self.folder, checkpoints, self.checkpoint)
        raise Reached(0)

    def batch(self, experience: Sequence[Experience]) -> list[Experience]:
        """The generation batch with the sample, out of those of its episode.

        Raises:
            EngineError: none has it.
        """
        self.episode_ids = frozenset(sample for part in experience for sample in part.ids.sample_ids)
        if self.sample not in self.episode_ids:
            was_there = self.sample in read_lines(episode_file(self.run, self.episode))
            raise EngineError(
                f"Sample {self.sample} is not among the {len(self.episode_ids)} samples of episode {self.episode}"
                + (
                    " any more, though it was logged: the data or what a module computes has changed since."
                    if was_there
                    else ": a step has left it out or made other rows of it, or a further round of prompts gave more "
                    "than was needed."
                )
            )
        return [part for part in experience if self.sample in part.ids.sample_ids]

    def _check_settings(self, config: Config) -> None:
        before, now = (_flat(each.model_dump(mode="json")) for each in (self.config, config))
        changed = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
        if refused := [key for key in changed if key in _TELLING or not may_change(key)]:
            lines = "\n  ".join(f"{key} is {now.get(key)!r} instead of {before.get(key)!r}" for key in refused)
            raise CheckpointError(
                f"The program does not give the settings that {self.run / 'config.yaml'} holds:\n  {lines}\nOne of the "
                f"two was changed since, or the program has come to another run. Give the run's values behind the "
                f"command, such as {refused[0]}={before.get(refused[0])}."
            )


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Values by dotted keys."""
    if not is_dict(value) or not value:
        return {path: value}
    return {
        key: each for name, part in value.items() for key, each in _flat(part, f"{path}.{name}".lstrip(".")).items()
    }


def end_if_recomputed(run: Run, deployment: Deployment, experience: StreamDataset) -> None:
    """Ends the run where a recomputation has what it is there for: the experience of its episode. Else nothing.

    Raises:
        Reached: the batch is written as lines of ``samples/``, in the folder of the recomputation.
        EngineError: the sample is not among those of the episode.
    """
    what = _current.get()
    if what is not None and run.state.episode + 1 == what.episode:
        experience.fill()
        run.log_samples(deployment, what.batch(experience.experience))
        what.is_done = True
        raise Reached(0)


_current: ContextVar[Recomputation | None] = ContextVar("recomputation", default=None)


def recomputation() -> Recomputation | None:
    """What is being recomputed in this process, if anything."""
    return _current.get()


@contextmanager
def recomputing(what: Recomputation) -> Generator[None]:
    """Inside, the program's ``learn()`` makes no run but this."""
    token = _current.set(what)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def claimed_folder(config: Config) -> Generator[RunFolder]:
    """The folder of the program's next run, which nobody else writes to meanwhile.

    Raises:
        ChatLearnError: as :func:`~chatlearn.checkpoint.run_folder.claim_run_folder`.
    """
    if (recomputed := _current.get()) is not None:
        with recomputed.claimed(config) as folder:
            yield folder
        return
    folder = claim_run_folder(config.runtime)
    note_run(folder.path)
    try:
        yield folder
    finally:
        folder.release()
