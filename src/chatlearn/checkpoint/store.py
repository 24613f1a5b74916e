"""Checkpoints of a run: complete or absent, written aside and renamed; ``latest`` is a pointer."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.files import load_state, read_json, save_state, sync_to_disk, write_json
from chatlearn.errors import CheckpointError
from chatlearn.guards import is_mapping

FORMAT = 1

MAY_CHANGE = frozenset(
    {
        *("backend", "isolate", "local_threads", "num_replica", "num_cpu", "stream_data_loader_type"),
        *("num_episode", "eval_episode_interval", "save_episode_interval", "resume", "output_dir", "exp_name"),
        *("log_interval", "log_samples", "export", "sinks", "trace", "profile_episodes", "profiler_dir"),
        *("best_metric", "best_metric_mode", "early_stop_patience", "early_stop_threshold"),
        *("max_data_ckpt_nums", "model_config_file", "enable_eval_before_training"),
        *("offload_weights", "offload_optimizer_states", "free_grad_buffers", "free_memory", "force_free_memory"),
        *("data_checkpoint_path", "load_data_checkpoint_iteration", "enable_resume_training"),
    }
)
"""Keys of the configuration that a resumed run may change: they don't decide what an episode computes."""


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

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        pointer = self._folder / "latest"
        if pointer.is_file():
            found = self._folder / pointer.read_text(encoding="utf-8").strip()
            if (found / "run.json").is_file():
                return found
        complete = sorted(path.parent for path in self._folder.glob("episode-*/run.json"))
        return complete[-1] if complete else None

    def find(self, episode: int | None) -> Path | None:
        """The checkpoint after so many episodes; ``None``: the newest, if there is one.

        Raises:
            CheckpointError: there are checkpoints, but none of that number; those that exist are listed.
        """
        if episode is None:
            return self.latest()
        complete = {path.parent.name: path.parent for path in sorted(self._folder.glob("episode-*/run.json"))}
        if complete and _name(episode) not in complete:
            raise CheckpointError(
                f"{self._folder} has no checkpoint of episode {episode}: runtime.load_data_checkpoint_iteration is one "
                f"of {', '.join(str(int(name.removeprefix('episode-'))) for name in complete)}."
            )
        return complete.get(_name(episode))

    @contextmanager
    def write(self, state: RunState, extra: dict[str, Any]) -> Generator[Path]:
        """Yields a folder to fill; afterwards it is the newest checkpoint. An exception leaves no trace of it."""
        name = _name(state.episode)
        aside, final = self._folder / f".{name}.partial", self._folder / name
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            write_json(aside / "run.json", {"format": FORMAT, "state": asdict(state), **extra})
            sync_to_disk(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        self.point_to(name)

    def mark_best(self, episode: int) -> None:
        """Makes the checkpoint after so many episodes the one with the best metric."""
        self.point_to(_name(episode), "best")

    def point_to(self, name: str, pointer: str = "latest") -> None:
        """Makes a complete checkpoint the newest (``latest``), or the one with the best metric (``best``)."""
        aside = self._folder / f".{pointer}.partial"
        aside.write_text(name + "\n", encoding="utf-8")
        sync_to_disk(aside)
        aside.rename(self._folder / pointer)
        sync_to_disk(self._folder)

    def prune(self, keep: int | None) -> None:
        """Deletes all but the newest ``keep`` checkpoints (``None``: none), and never the best one."""
        pointer = self._folder / "best"
        best = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        complete = sorted(path.parent for path in self._folder.glob("episode-*/run.json"))
        for folder in complete[: -keep if keep else 0]:
            if folder.name != best:
                shutil.rmtree(folder)


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, as far as it is known: the run may have been moved since."""
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent
    written_by = read_json(checkpoint / "run.json").get("run")
    return None if written_by is None else Path(written_by)


def read_run_state(checkpoint: Path) -> tuple[RunState, dict[str, Any]]:
    """The counters of a checkpoint, and what else ``run.json`` holds.

    Raises:
        CheckpointError: damaged, or of a format that this version does not know.
    """
    content = read_json(checkpoint / "run.json")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint} has format {content.get('format')!r}; this version reads format {FORMAT}. Resume with the "
            f"version of chatlearn that wrote it, or start a new run."
        )
    return RunState(**content["state"]), content


def _name(episode: int) -> str:
    return f"episode-{episode:06d}"


def check_same_identity(checkpoint: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to go on under settings that change the numbers of a run.

    Args:
        checkpoint: for the error.
        saved: the configuration that the checkpoint was written under, as plain data.
        current: the present one.

    Raises:
        CheckpointError: keys differ other than those of :data:`MAY_CHANGE`; all are listed.
    """
    before, now = _flat(saved), _flat(current)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if refused := [key for key in changed if key.rsplit(".", 1)[-1] not in MAY_CHANGE]:
        lines = "\n  ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in refused)
        raise CheckpointError(
            f"{checkpoint} was written under other settings, so the run would not go on as it began:\n  {lines}\n"
            "Put them back, or start a new run with runtime.resume=never."
        )


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if is_mapping(value) and value else {f"{path}{key}": value}
    return flat


def save_shared(folder: Path, shared: Mapping[str, Any], puts: Mapping[str, Any]) -> None:
    """Writes what modules share by ``put`` and ``get``, also what is to be shared from the next episode on."""
    if shared or puts:
        save_state({"values": {**shared, **puts}}, folder / "shared")


def load_shared(checkpoint: Path) -> dict[str, Any]:
    """What :func:`save_shared` wrote."""
    exists = (checkpoint / "shared.json").exists()
    return load_state(checkpoint / "shared")["values"] if exists else {}


def save_replay(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the episodes that later ones replay."""
    save_state(dict(state), folder / "replay")


def load_replay(checkpoint: Path) -> dict[str, Any]:
    """What :func:`save_replay` wrote.

    Raises:
        CheckpointError: the checkpoint is of a run that replayed nothing.
    """
    return load_state(checkpoint / "replay")
