"""One run: its folder, its counters, its metrics; what is written as it goes and when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from chatlearn.checkpoint.disk import written
from chatlearn.checkpoint.module_state import export_module
from chatlearn.checkpoint.run_folder import RunFolder, discard_rows
from chatlearn.checkpoint.store import RunState
from chatlearn.config.schema import Config
from chatlearn.data.stream import Experience
from chatlearn.engine.best import BestMetric
from chatlearn.engine.checkpoints import Checkpoints, Kept
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.program import write_program
from chatlearn.engine.recompute import recomputation
from chatlearn.observe.curve import draw_learning_curve
from chatlearn.observe.profiler import episode_profiler
from chatlearn.observe.progress import Progress
from chatlearn.observe.samples import logged_rows
from chatlearn.observe.sinks import GuardedSink, open_sinks
from chatlearn.observe.spans import TraceFile
from chatlearn.runtime.calls import Rows


class Run:
    """The record of a run.

    Args:
        config: resolved.
        folder: claimed for this run.
        kept: what its checkpoints hold.
    """

    def __init__(self, config: Config, folder: RunFolder, kept: Kept | None = None) -> None:
        kept = kept or Kept()
        self.state = RunState()
        self.replay = kept.replay
        self.has_ended, self._has_begun = folder.finished, False
        self.config, self._folder = config, folder
        self.checkpoints = Checkpoints(config, folder, kept)
        self.last_row: dict[str, Any] | None = None
        self._started = self._last = time.monotonic()
        self._phases: dict[str, float] = {}
        self._sinks: list[GuardedSink] = []
        self._progress: Progress | None = None
        self._trace: TraceFile | None = None
        self._traced: Deployment | None = None
        self._marked_version = 0
        self._noted: set[str] = set()
        self.profile: Callable[[int], AbstractContextManager[None]] = lambda episode: nullcontext()

    @property
    def best(self) -> BestMetric:
        """The best episode by ``runtime.best_metric``."""
        return BestMetric(self.config.runtime, self.state)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    def write_config(self) -> None:
        """Writes ``config.yaml``, which makes the folder that of a run."""
        path = self.path / "config.yaml"
        with written(path):
            path.write_text(self.config.to_yaml(), encoding="utf-8")
            write_program(self.path)

    def open(self, deployment: Deployment, num_episodes: int) -> None:
        """Restores the counters and modules of the checkpoint, if there is one, and opens the files."""
        self.state = self.checkpoints.restore(deployment)
        self._has_begun = True
        self.write_result(status="running")  # whatever an earlier part of the run ended with
        with written(self.path / "metrics.jsonl"):
            discard_rows(self.path / "metrics.jsonl", -1 if self.checkpoints.begins_anew else self.state.episode)
        runtime = self.config.runtime
        plain = self.config.model_dump(mode="json")
        sinks = open_sinks(self.path, self.state.episode + 1, runtime.sinks, exp_name=runtime.exp_name, config=plain)
        self._sinks = [GuardedSink(sink) for sink in sinks]
        deployment.state = self.state
        deployment.cluster.keep_logs(self.path / "logs")
        if runtime.trace:
            self._trace = deployment.trace = TraceFile(self.path / "trace.json")
            self._traced = deployment
        self._progress = Progress(runtime.exp_name, num_episodes, self.state.episode, runtime.log_interval)
        for text in filter(None, [self._folder.note, *(sink.note for sink in self._sinks)]):
            self.note(text)
        folder = Path(runtime.profiler_dir) if runtime.profiler_dir else self.path / "profile"
        self.profile = episode_profiler(runtime.profile_episodes, folder)

    def note(self, text: str) -> None:
        """Tells the user something, once."""
        (self._progress.note if self._progress else print)(text)

    def note_once(self, kind: str, text: str) -> None:
        """Tells the user the first of all notes of this kind."""
        if kind not in self._noted:
            self._noted.add(kind)
            self.note(text)

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent on ``phase``."""
        now = time.monotonic()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._last = now
        if self._trace is not None:
            self._mark(self._trace, phase)

    def _mark(self, trace: TraceFile, phase: str) -> None:
        """Marks in the trace where something has ended that holds for all replicas."""
        if phase in ("evaluate", "save"):
            trace.instant(phase, episode=self.state.episode)
        elif phase == "sync" and self.state.weight_version != self._marked_version:  # a lap without a sync due is none
            self._marked_version = self.state.weight_version
            trace.instant(phase, weight_version=self.state.weight_version)

    def log(self, metrics: dict[str, float], num_samples: int) -> None:
        """Writes the row of the episode that has just been completed."""
        phases, self._phases = self._phases, {}
        seconds = max(sum(phases.values()), 1e-9)
        row: dict[str, Any] = {
            **metrics,
            "num_samples": num_samples,
            "global_batches": self.state.global_batches,
            "weight_version": self.state.weight_version,
            **{f"time/{phase}_seconds": value for phase, value in phases.items()},
            "time/episode_seconds": seconds,
            "time/samples_per_second": num_samples / seconds,
        }
        self.last_row = {"episode": self.state.episode, **row}
        for sink in self._sinks:
            sink.write(self.state.episode, row)
        if self._trace is not None:
            self._trace.flush()
        assert self._progress is not None
        self._progress.update(self.state.episode, row)

    def log_samples(self, deployment: Deployment, experience: Sequence[Experience]) -> None:
        """Writes the first samples of the current episode, in whole groups, one JSON object a line.

        The lines are made by the replicas that have made the samples.
        """
        episode, folder = self.state.episode + 1, self.path / "samples"
        counts = logged_rows([part.ids for part in experience], self.config.runtime.log_samples)
        texts = [
            deployment.cluster.call(
                part.maker or deployment.handles()[0],
                "lines",
                Rows(part.sources, range(count)),
                part.ids.slice(0, count),
                episode,
            )
            for part, count in zip(experience, counts, strict=True)
            if count
        ]
        lines = [line for text in texts for line in deployment.cluster.get(text)]
        if texts:
            path = folder / f"episode-{episode:06d}.jsonl"
            with written(path):
                folder.mkdir(exist_ok=True)
                path.write_text("".join(lines), encoding="utf-8")

    def save(self, deployment: Deployment, is_best: bool = False) -> None:
        """Writes a checkpoint of the current state; ``is_best`` marks it as the one with the best metric."""
        self.checkpoints.save(deployment, self.state, is_best=is_best)
        self.lap("save")

    def finish(self, deployment: Deployment, reason: str | None = None) -> None:
        """Exports models, draws the curve and writes ``result.json``; ``reason`` says why the run ends early."""
        self.checkpoints.commit(deployment)
        if reason:
            self.note(f"The run ends after {self.state.episode} episodes: {reason}.")
        if text := self.best.never_came(self.last_row or {}):
            self.note(text)
        names = self.config.runtime.export
        policy = "policy" if "policy" in names else next(iter(names), None)
        for name in names:
            deployment.occupy([name])
            deployment.apply_first(name, export_module, str(self.path / ("policy" if name == policy else name)))
        self.close("finished")
        if problem := self.draw_curve():
            print(problem)
        ended: dict[str, Any] = {"ended_early": reason} if reason else {}
        if self.config.runtime.best_metric:
            ended |= {"best_metric": self.state.best_value, "best_episode": self.state.best_episode}
        self.write_result(status="finished", policy_path=str(self.path / "policy") if policy else None, **ended)

    def end(self, status: str) -> None:
        """Closes the files of a run that does not get to its end, and says how to go on."""
        self.close(status)
        self.write_result(status=status)
        if recomputation() is None and (status == "interrupted" or self._has_begun):  # else it would end so again
            print(
                f"Run {status} after {self.state.episode} complete episodes. Go on with: runtime.resume={self.path}",
                flush=True,
            )

    def close(self, status: str) -> None:
        """Closes files and display; ``status`` is what the run ends with."""
        self.has_ended = True
        if self._progress is not None:
            self._progress.close()
        for sink in self._sinks:
            sink.close(status)
        self._sinks = []
        if self._trace is not None:
            self._trace.close()
            self._trace = None
        if self._traced is not None:  # evaluations after the run are none of it
            self._traced.trace = None

    def draw_curve(self, marks: dict[str, tuple[int, float]] | None = None) -> str | None:
        """Draws ``learning_curve.png``; returns why not, if not. ``marks`` as in :func:`draw_learning_curve`."""
        picture = self.path / "learning_curve.png"
        return draw_learning_curve(self.path / "metrics.jsonl", picture, self.config.runtime.exp_name, marks)

    def write_result(self, **values: Any) -> None:
        """Adds values to ``result.json``."""
        path = self.path / "result.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"policy_path": None, "episodes": 0}
        if self._has_begun:
            known["episodes"] = self.state.episode
        known |= {"seconds": round(time.monotonic() - self._started, 3), **values}
        aside = path.with_suffix(".partial")
        with written(path):
            aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            aside.rename(path)
