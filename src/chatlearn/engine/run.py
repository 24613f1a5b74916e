"""One run: its folder, its counters, its metrics; what is written as it goes and when it ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatlearn.checkpoint.run_folder import RunFolder, discard_rows
from chatlearn.checkpoint.store import (
    CheckpointStore,
    RunState,
    check_same_identity,
    load_module,
    read_run_state,
    remember_setup,
    save_module,
)
from chatlearn.config.schema import Config
from chatlearn.data.stream import Experience
from chatlearn.engine.deployment import Deployment
from chatlearn.modules.base import merge_batches
from chatlearn.observe.curve import draw_learning_curve
from chatlearn.observe.progress import Progress
from chatlearn.observe.sinks import Sink, open_sinks
from chatlearn.types import Batch

_MAX_NUMBERS = 4096
"""Larger values of a sample are described, not written out."""


class Run:
    """The record of a run.

    Args:
        config: resolved.
        folder: claimed for this run.
        trained: names of the modules whose whole state a checkpoint keeps.
        synced: names of the modules that get their ``model`` by parameter sync.
    """

    def __init__(self, config: Config, folder: RunFolder, trained: Sequence[str], synced: Sequence[str]) -> None:
        self.state = RunState()
        self.config, self._folder = config, folder
        self._trained, self._synced = set(trained), set(synced)
        self._store = CheckpointStore(folder.path / "checkpoints")
        self._started = self._last = time.monotonic()
        self._phases: dict[str, float] = {}
        self._sinks: list[Sink] = []
        self._progress: Progress | None = None

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    def check_resume(self, names: Iterable[str]) -> None:
        """Compares the settings with those of the checkpoint to go on from, before anything is written.

        Raises:
            CheckpointError: they differ in what decides the numbers of the run.
        """
        if self._folder.checkpoint is not None:
            _, content = read_run_state(self._folder.checkpoint)
            saved = content["config"]
            common = [name for name in names if name in saved["models"]]
            saved |= {"models": {name: saved["models"][name] for name in common}}
            check_same_identity(self._folder.checkpoint, saved, self._settings_of(common))

    def _settings_of(self, names: Iterable[str]) -> dict[str, Any]:
        """The configuration as plain data, with the whole section of every module, given or not."""
        models = {name: self.config.model(name).model_dump(mode="json") for name in names}
        return {**self.config.model_dump(mode="json"), "models": models}

    def write_config(self) -> None:
        """Writes ``config.yaml``, which makes the folder that of a run."""
        (self.path / "config.yaml").write_text(self.config.to_yaml(), encoding="utf-8")

    def open(self, deployment: Deployment, num_episodes: int) -> None:
        """Restores the counters and modules of the checkpoint, if there is one, and opens the files."""
        for name in deployment.names:
            deployment.apply(name, remember_setup, name in self._synced)
        if self._folder.checkpoint is not None:
            self.state, content = read_run_state(self._folder.checkpoint)
            self._store.point_to(self._folder.checkpoint.name)  # an older one, perhaps: what came after it is replaced
            for name in content["modules"]:
                deployment.apply(name, load_module, str(self._folder.checkpoint), self.state.episode)
        self.write_result(status="running")  # whatever an earlier part of the run ended with
        discard_rows(self.path / "metrics.jsonl", self.state.episode)
        self._sinks = open_sinks(self.path, self.state.episode + 1)
        runtime = self.config.runtime
        self._progress = Progress(runtime.exp_name, num_episodes, self.state.episode, runtime.log_interval)
        if self._folder.note:
            self.note(self._folder.note)

    def note(self, text: str) -> None:
        """Tells the user something, once."""
        (self._progress.note if self._progress else print)(text)

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent on ``phase``."""
        now = time.monotonic()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._last = now

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
        for sink in self._sinks:
            sink.write(self.state.episode, row)
        assert self._progress is not None
        self._progress.update(self.state.episode, row)

    def log_samples(self, deployment: Deployment, experience: Sequence[Experience]) -> None:
        """Writes the first ``log_samples`` samples of the current episode, one JSON object a line."""
        limit = self.config.runtime.log_samples
        left = float("inf") if limit == "all" else limit
        lines: list[str] = []
        for part in experience:
            if len(lines) >= left:
                break
            batch = merge_batches([deployment.cluster.get(source) or {} for source in part.sources])
            for row in range(min(len(part.ids), int(min(left - len(lines), len(part.ids))))):
                ids = {
                    "sample_id": part.ids.sample_ids[row],
                    "group_id": part.ids.group_ids[row],
                    "weight_version": part.ids.weight_version,
                }
                lines.append(json.dumps({**ids, **_readable(batch, row)}, default=str) + "\n")
        if lines:
            folder = self.path / "samples"
            folder.mkdir(exist_ok=True)
            (folder / f"episode-{self.state.episode + 1:06d}.jsonl").write_text("".join(lines), encoding="utf-8")

    @property
    def save_is_due(self) -> bool:
        """Whether the episode that was just completed ends with a checkpoint."""
        interval = self.config.runtime.save_episode_interval
        return bool(interval and self.state.episode % interval == 0)

    def save(self, deployment: Deployment) -> None:
        """Writes a checkpoint of the current state."""
        saved: list[str] = []
        extra = {"modules": saved, "config": self._settings_of(deployment.names)}
        with self._store.write(self.state, extra) as folder:
            for name in deployment.names:
                keep = name in self._trained, name in self._synced
                if deployment.apply_first(name, save_module, str(folder), self.state.episode, *keep):
                    saved.append(name)
        self.lap("save")

    def finish(self, deployment: Deployment) -> None:
        """Exports models, draws the curve and writes ``result.json``."""
        names = self.config.runtime.export
        policy = "policy" if "policy" in names else next(iter(names), None)
        for name in names:
            deployment.apply_first(name, _export, str(self.path / ("policy" if name == policy else name)))
        self.close()
        if problem := self.draw_curve():
            print(problem)
        self.write_result(status="finished", policy_path=str(self.path / "policy") if policy else None)

    def end(self, status: str) -> None:
        """Closes the files of a run that does not get to its end, and says how to go on."""
        self.close()
        self.write_result(status=status)
        print(
            f"Run {status} after {self.state.episode} complete episodes. Go on with: runtime.resume={self.path}",
            flush=True,
        )

    def close(self) -> None:
        """Closes files and display."""
        if self._progress is not None:
            self._progress.close()
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def draw_curve(self, marks: dict[str, tuple[int, float]] | None = None) -> str | None:
        """Draws ``learning_curve.png``; returns why not, if not. ``marks`` as in :func:`draw_learning_curve`."""
        picture = self.path / "learning_curve.png"
        return draw_learning_curve(self.path / "metrics.jsonl", picture, self.config.runtime.exp_name, marks)

    def write_result(self, **values: Any) -> None:
        """Adds values to ``result.json``."""
        path = self.path / "result.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"policy_path": None}
        known |= {
            "episodes": self.state.episode,
            "seconds": round(time.monotonic() - self._started, 3),
            **values,
        }
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        aside.rename(path)


def _export(module: Any, path: str) -> None:
    module.export(path)


def _readable(batch: Batch, row: int) -> dict[str, Any]:
    """One sample as plain values; of token fields the response's tokens only."""
    mask = batch.get("response_mask")
    response = mask[row].bool() if isinstance(mask, torch.Tensor) else None
    values: dict[str, Any] = {}
    for key, column in batch.items():
        if key in ("attention_mask", "response_mask"):
            continue
        value = column if isinstance(column, dict) else column[row]
        if isinstance(value, torch.Tensor) and response is not None and value.shape == response.shape:
            value = value[response]
        if isinstance(value, (torch.Tensor, np.ndarray)):
            value = value.tolist() if math.prod(value.shape) <= _MAX_NUMBERS else f"{value.dtype} {list(value.shape)}"
        values[key] = _readable(value, row) if isinstance(value, dict) and isinstance(column, dict) else value
    return values
