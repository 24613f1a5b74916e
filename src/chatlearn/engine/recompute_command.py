"""``chatlearn replay``: a sample's generation batch, made once more and compared with what the run has logged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.manifest import damage
from chatlearn.checkpoint.store import CheckpointStore, episode_of, read_run_state
from chatlearn.config.active import over_all
from chatlearn.config.load import load_config, parse_command_line
from chatlearn.config.schema import Config
from chatlearn.engine.program import Program, changes_since, read_program, running
from chatlearn.engine.recompute import QUIET, Recomputation, recomputing
from chatlearn.errors import ChatLearnError, CheckpointError, ConfigError, EngineError
from chatlearn.observe.sample_comparison import Comparison
from chatlearn.observe.sample_differences import differences
from chatlearn.observe.sample_log import drawn, episode_file, first_episode, logged_in, read_lines

Start = Callable[[Program, Path], None]
"""Starts a program again, for the run that lies in a folder."""


def replay_command(run: Path, sample: int, words: Sequence[str], out: Path | None, start: Start) -> int:
    """Makes a sample's generation batch once more and prints how it compares with the log. The run is only read.

    Args:
        run: its folder.
        sample: id, as in ``samples/*.jsonl``.
        words: settings that go over those of the program.
        out: file for the lines of the recomputed batch.
        start: starts the program; its ``learn()`` is then that of the recomputation.

    Returns:
        0 where all lines that the run has logged of the batch are the same, bit for bit; else 1.

    Raises:
        ChatLearnError: the sample can't be recomputed any more; it says why.
    """
    settings = _settings(words)
    run = Path(os.path.abspath(run))
    config = _config_of(run)
    program = _startable(run)
    moved = [] if str(run) == program.run else [f"the run was made in {program.run}, which its settings may name."]
    episode = _episode_of(run, config, sample)
    checkpoint, notes = _nearest(run, config, program, episode)
    before, changed = _settings_then(run, config, program, checkpoint, episode)
    print(f"Sample {sample} was made in episode {episode} of {run}.\n{_way(checkpoint, episode)}")
    print(
        "".join(f"note: {note}\n" for note in [*moved, *notes, *changed, *changes_since(program)]), end="", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="chatlearn-replay-") as name:
        earlier = [Path(path) for path in program.earlier]
        what = Recomputation(run, load_config(config, before), sample, episode, checkpoint, Path(name), earlier)
        _make(what, program, [*before, *settings, *QUIET], start)
        file = episode_file(what.folder, episode)
        made, logged = read_lines(file), read_lines(episode_file(run, episode))
        found = Comparison(sample, made, logged, what.episode_ids, _difference_before(what))
        if out is not None:
            _copy(file, out)
    print(found.text())
    return int(found.differs)


# -- what there is --


def _config_of(run: Path) -> Config:
    if not (run / "config.yaml").is_file():
        what = "holds no config.yaml" if run.is_dir() else "is no folder"
        raise CheckpointError(f"{run} is not the folder of a run: it {what}. Give a folder such as runs/<exp_name>.")
    return load_config(run / "config.yaml")


def _startable(run: Path) -> Program:
    """The program of a run, if it can be started again."""
    program = read_program(run)
    if program.problem:
        raise CheckpointError(
            f"{run} was made by {program.problem}, which can't be started again. Runs of recipes, of Python files and "
            f"of modules (python -m …) can be recomputed."
        )
    if program.recipe and (run.parent / "config.yaml").is_file():
        raise CheckpointError(
            f"{run} is a stage of {run.parent}, which the recipe {program.recipe} does not begin with. Samples of "
            f"{run.parent} itself can be recomputed."
        )
    for what, path in (("program", program.script), ("folder that its program was started in", program.folder)):
        if path and not Path(path).exists():
            raise CheckpointError(f"{run} can't be recomputed: the {what} is gone, {path}. Put it back there.")
    return program


def _episode_of(run: Path, config: Config, sample: int) -> int:
    """The episode that has made a sample, which need not be logged."""
    if (logged := logged_in(run, sample)) is not None:
        return logged
    episodes = dict(drawn(run, config.runtime))
    for number in (sample, sample >> 16):  # a row that a step has made of another has a longer id
        if found := [episode for episode, ids in episodes.items() if number in ids]:
            return found[0]
    ids = [each for each in episodes.values() if each]
    drew = f", and the {len(ids)} complete episodes have drawn samples {ids[0][0]} to {ids[-1][-1]}" if ids else ""
    raise CheckpointError(f"{run} has no sample {sample}: none of its logged samples has this id{drew}.")


def _nearest(run: Path, config: Config, program: Program, episode: int) -> tuple[Path | None, list[str]]:
    """The last checkpoint before an episode that is not damaged, and words on those that are."""
    notes: list[str] = []
    for path in sorted(_checkpoints(run, config, program), key=episode_of, reverse=True):
        if episode_of(path) < episode:
            if not (problems := damage(path)):
                return path, notes
            notes.append(f"{path} is left out: {problems[0]}")
    if (first := first_episode(run)) > 1:
        raise CheckpointError(
            f"{run} begins with episode {first}, behind a checkpoint of another run, and has no checkpoint of its own "
            f"before episode {episode}: what led there can't be recomputed. Recompute a sample of the other run."
        )
    return None, notes


def _checkpoints(run: Path, config: Config, program: Program) -> list[Path]:
    """Those of the run; in a folder that runs share, also the one that it began with."""
    found = CheckpointStore(run / "checkpoints").all()
    if (shared := config.runtime.data_checkpoint_path) is not None:
        begin, own = first_episode(run) - 1, (str(run), program.run)
        others = CheckpointStore(Path(program.folder, shared)).all()
        found += [path for path in others if _content(path).get("run") in own or episode_of(path) == begin]
    return found


def _content(checkpoint: Path) -> Mapping[str, Any]:
    """What a checkpoint's ``run.json`` holds; nothing where it can't be read."""
    try:
        return read_run_state(checkpoint)[1]
    except ChatLearnError:
        return {}


def _settings_then(
    run: Path, config: Config, program: Program, checkpoint: Path | None, episode: int
) -> tuple[list[str], list[str]]:
    """The settings of an episode that later parts of the run have changed, and words on what else they have changed.

    Raises:
        CheckpointError: one was changed on the way from the checkpoint to the episode.
    """
    later = [path for path in _checkpoints(run, config, program) if episode_of(path) >= episode]
    contents = [_content(path) for path in sorted(later, key=episode_of)]
    settings = [f"runtime.num_episode={contents[0]['config']['runtime']['num_episode']}"] if contents else []
    notes: list[str] = []
    begin = 0 if checkpoint is None else episode_of(checkpoint)
    for change in reversed(contents[-1]["changes"] if contents else []):
        key, what = change["key"], f"{change['key']} was {change['was']!r} until episode {change['episode']}"
        if begin < change["episode"] < episode:
            raise CheckpointError(
                f"{run} can't be recomputed from {checkpoint or 'its beginning'} to episode {episode}: {what}, then "
                f"{change['now']!r}, and no checkpoint in between is left."
            )
        if change["episode"] >= episode and key.split(".")[0] in Config.model_fields:
            settings.append(f"{key}={json.dumps(change['was'])}")
        elif change["episode"] >= episode:
            notes.append(f"{what}; put that back before you recompute what came before.")
    return settings, notes


def _way(checkpoint: Path | None, episode: int) -> str:
    """Where the recomputation begins, and how many episodes it runs before the one that is asked for."""
    between = episode - 1 - (0 if checkpoint is None else episode_of(checkpoint))
    number = f"{between} episode{'s' * (between > 1)}"
    if checkpoint is not None:
        return f"It is made once more from {checkpoint}" + (f", with {number} in between." if between else ".")
    start = "it is made once more from the beginning of the run"
    return f"No earlier checkpoint is left: {start}, after {number}." if between else f"I{start[1:]}."


# -- making it again --


def _settings(words: Sequence[str]) -> list[str]:
    paths, settings = parse_command_line(words)
    others = [word for word in words if word.removeprefix("--set=") not in [*settings, "--set"]]
    if paths or others:
        raise ConfigError(
            f"Nothing reads {', '.join(map(repr, others))}. chatlearn replay takes settings that go over those of the "
            f"run's program, such as runtime_env.backend=local."
        )
    return settings


def _make(what: Recomputation, program: Program, settings: Sequence[str], start: Start) -> None:
    """Runs the program up to what is asked for. What it prints goes to stderr."""
    code: object = None
    try:
        with (
            contextlib.chdir(program.folder),
            contextlib.redirect_stdout(sys.stderr),
            running(),
            over_all(settings),
            recomputing(what),
        ):
            start(program, what.run)
    except SystemExit as end:
        code = end.code
    if not what.is_done:
        reached = "before the run had come that far" if what.has_begun else "without engine.learn() of the run"
        code = f" ({code})" if code else ""
        raise EngineError(f"The program {program.name} came to its end{code} {reached}, so nothing was recomputed.")


def _difference_before(what: Recomputation) -> str:
    """The first thing that differs in the episodes that were run on the way, as far as they are logged."""
    begin = 0 if what.checkpoint is None else episode_of(what.checkpoint)
    for episode in range(begin + 1, what.episode):
        made = read_lines(episode_file(what.folder, episode))
        for sample, line in read_lines(episode_file(what.run, episode)).items():
            found = next(iter(differences(line, made[sample]).values()), "") if sample in made else "not made again"
            if found:
                return f"sample {sample} of episode {episode}: {found}"
    return ""


def _copy(file: Path, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out)
    except OSError as error:
        raise ConfigError(f"{out.absolute()} can't be written: {error.strerror}. Give another path after -o.") from None
