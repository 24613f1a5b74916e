"""The folder of a run: found, numbered, never overwritten, written by one program at a time; and what a resumed run
does with the rows that came after its checkpoint.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from chatlearn.checkpoint import run_lock
from chatlearn.checkpoint.store import CheckpointStore, run_of
from chatlearn.config.schema import RuntimeConfig
from chatlearn.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Attributes:
        path: absolute.
        checkpoints: where its checkpoints lie.
        checkpoint: to go on from; ``None`` starts at the beginning.
        finished: the run was ended before; nothing is left to do.
        note: lines for the user, or empty.
        claim: this process's share in the folder's lock; ``None`` for a run that is finished.
    """

    path: Path
    checkpoints: Path
    checkpoint: Path | None = None
    finished: bool = False
    note: str = ""
    claim: run_lock.Claim | None = field(default=None, compare=False, repr=False)

    def release(self) -> None:
        """Says that this run writes no more: another process may go on with the folder. Later calls do nothing."""
        if self.claim is not None:
            self.claim.release()


def claim_run_folder(runtime: RuntimeConfig) -> RunFolder:
    """Finds or makes the folder of a run, and sees that everything that the run will write can be written.

    From then on the folder is this process's, until :meth:`RunFolder.release` or its end; the same process may claim it
    again.

    Args:
        runtime: ``resume`` says what to go on from: ``never`` begins a new run, in ``<output_dir>/<exp_name>`` (with
            ``-2``, ``-3``, … where that is taken), ``auto`` goes on with the highest-numbered run of the name, if there
            is one; otherwise it is the path of a run folder or of a checkpoint. A ``data_checkpoint_path`` is gone on
            from even so, unless ``enable_resume_training`` is off. ``load_data_checkpoint_iteration`` chooses among
            checkpoints.

    Raises:
        CheckpointError: there is no such run or checkpoint, or another process has claimed the folder.
        ConfigError: a folder can't be made, read or written; its key is named.
    """
    found = _readable(runtime)
    if found.finished:
        run_lock.check_free(found.path)
        return found
    for folder in filter(Path.exists, (found.path, found.checkpoints)):
        _check_writable(folder, _key_of(found, runtime))
    claim = run_lock.claim(found.path)
    CheckpointStore(found.checkpoints).recover()
    if (found.path / "config.yaml").is_file():  # what is there may have changed until the folder was ours
        again = _readable(runtime)
        if again.finished or again.path != found.path:
            claim.release()
            return claim_run_folder(runtime)
        found = again
    return replace(found, claim=claim, note="\n".join(filter(None, [found.note, claim.note])))


def _readable(runtime: RuntimeConfig) -> RunFolder:
    try:
        return _claimed(runtime)
    except OSError as error:
        raise ConfigError(
            f"runtime.resume: what there is to go on from can't be read: {error.strerror} "
            f"({_short(str(error.filename))}). Give the folder of a run that this user may read, or start a new run "
            "with runtime.resume=never."
        ) from error


def _claimed(runtime: RuntimeConfig) -> RunFolder:
    parent = Path(runtime.output_dir).absolute()
    if runtime.data_checkpoint_path:
        _check_writable(Path(runtime.data_checkpoint_path), "runtime.data_checkpoint_path")
    if runtime.profiler_dir and runtime.profile_episodes:
        _check_writable(Path(runtime.profiler_dir), "runtime.profiler_dir")
    if runtime.resume not in ("never", "auto"):
        return _given(Path(runtime.resume).absolute(), runtime)
    if runtime.resume == "auto" and (runs := _runs(parent, runtime.exp_name)):
        return _continued(runs[-1], runtime)
    episode = runtime.load_data_checkpoint_iteration
    if runtime.data_checkpoint_path and runtime.enable_resume_training:
        checkpoint = CheckpointStore(Path(runtime.data_checkpoint_path).absolute()).find(episode)
        if checkpoint is not None:
            return _behind(checkpoint) or _new(parent, runtime, checkpoint)
    if episode is not None and runtime.enable_resume_training:
        raise CheckpointError(
            f"runtime.load_data_checkpoint_iteration is {episode}, but there is no checkpoint to go on from. Name the "
            "run in runtime.resume or the folder of checkpoints in runtime.data_checkpoint_path, or leave the number "
            "out."
        )
    return _new(parent, runtime)


def _check_writable(folder: Path, key: str) -> None:
    """Makes a folder, and a file in it that has no name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: {_short(str(folder))} can't be written as a folder: {error.strerror}. Set it to a folder that "
            "this user may write, or to a path where one can be made."
        ) from error


def _key_of(found: RunFolder, runtime: RuntimeConfig) -> str:
    """What has led to the folder of a run."""
    if found.path.parent == Path(runtime.output_dir).absolute():
        return "runtime.output_dir"
    return "runtime.data_checkpoint_path" if runtime.resume in ("never", "auto") else "runtime.resume"


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:60]}…{text[-40:]} ({len(text)} characters)"


def discard_rows(path: Path, last_episode: int) -> None:
    """Keeps the rows of a JSONL file up to an episode; later ones, and a torn last line, move to
    ``<name>.discarded.jsonl``.
    """
    if not path.exists():
        return
    kept: list[str] = []
    dropped: list[str] = []
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        (kept if _episode(line) <= last_episode else dropped).append(line + "\n")
    if dropped:
        with path.with_suffix(".discarded.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(dropped)
    if text != "".join(kept):
        aside = path.with_suffix(".partial")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.rename(path)


def _episode(line: str) -> float:
    try:
        return json.loads(line)["episode"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _new(parent: Path, runtime: RuntimeConfig, checkpoint: Path | None = None) -> RunFolder:
    _check_writable(parent, "runtime.output_dir")
    name, number = runtime.exp_name, 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise ConfigError(
                f"runtime.exp_name: no folder can be called {_short(path.name)!r}: {error.strerror}. Choose a shorter "
                "name of letters, digits and - _ ."
            ) from error
        taken = f"{parent / name} is taken. " if number > 1 else ""
        going_on = f"Going on from {checkpoint}. " if checkpoint else ""
        note = f"{going_on}{taken}This run writes to {path}."
        return RunFolder(path, _checkpoints(path, runtime), checkpoint, note=note)


def _runs(parent: Path, name: str) -> list[Path]:
    """Folders of the runs of one name, by number."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = [
        (int(match[1] or 1), path)
        for path in parent.glob("*")
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def _given(path: Path, runtime: RuntimeConfig) -> RunFolder:
    if (path / "run.json").is_file():
        return _behind(path, asked=True) or _new(Path(runtime.output_dir).absolute(), runtime, path)
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            f"runtime.resume: {path} is neither a run folder nor a checkpoint. Give the folder of a run (it holds "
            "config.yaml), one of its checkpoints/episode-…, or `auto`."
        )
    return _continued(path, runtime)


def _continued(path: Path, runtime: RuntimeConfig) -> RunFolder:
    checkpoints = _checkpoints(path, runtime)
    if _is_finished(path):
        return RunFolder(path, checkpoints, finished=True, note=f"{path} is finished; there is nothing to resume.")
    store = CheckpointStore(checkpoints)
    checkpoint = store.find(runtime.load_data_checkpoint_iteration)
    if checkpoint is not None:
        notes = [store.loss(), f"Going on from {checkpoint}."]
        return RunFolder(path, checkpoints, checkpoint, note="\n".join(filter(None, notes)))
    begun = (path / "metrics.jsonl").exists()
    notes = [store.loss(), f"{path} has no checkpoint yet; starting again in that folder." if begun else ""]
    return RunFolder(path, checkpoints, note="\n".join(filter(None, notes)))


def _behind(checkpoint: Path, asked: bool = False) -> RunFolder | None:
    """The folder of the run that wrote a checkpoint, if it is still there; ``asked`` for by its path, the checkpoint
    of a finished run is gone on from too.
    """
    path = run_of(checkpoint)
    if path is None or not (path / "config.yaml").is_file():
        return None
    if not asked and _is_finished(path):
        return RunFolder(
            path, checkpoint.parent, finished=True, note=f"{path} is finished; there is nothing to resume."
        )
    return RunFolder(path, checkpoint.parent, checkpoint, note=f"Going on from {checkpoint}.")


def _checkpoints(path: Path, runtime: RuntimeConfig) -> Path:
    given = runtime.data_checkpoint_path
    return Path(given).absolute() if given else path / "checkpoints"


def _is_finished(path: Path) -> bool:
    result = path / "result.json"
    try:
        return result.is_file() and json.loads(result.read_text(encoding="utf-8")).get("status") == "finished"
    except ValueError:  # torn by a failure of the power
        return False
