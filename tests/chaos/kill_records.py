"""What a run of the small PPO program has left in its folder, as far as it has to be the same in every run."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any


def record_of(run: Path) -> dict[str, Any]:
    """All that decides whether two runs are the same, by name.

    - ``metrics``: rows of ``metrics.jsonl`` but for keys under ``time/``;
    - ``samples``: digests of the files, with the tokens that were sampled;
    - ``exported``: digests of all other files with tensors, the exported models;
    - ``checkpoints``: which there are, and which is the newest and the best;
    - ``states``: digests of their files: weights, optimizers, schedules, the KL controller, the episodes that are
    replayed,
      what modules have put, files of modules' own, and the record of the samples that were trained on;
    - ``counters``: of ``run.json``;
    - ``result``: ``result.json`` but for seconds and paths;
    - ``tensorboard``: steps and values of each tag, as TensorBoard shows them;
    - ``stray``: what nobody needs any more.
    """
    checkpoints = run / "checkpoints"
    return {
        "metrics": [_calm(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "samples": _digests(run / "samples"),
        "exported": {
            name: digest for name, digest in _digests(run, "*.safetensors").items() if "checkpoints" not in name
        },
        "checkpoints": {
            "complete": sorted(path.name for path in checkpoints.glob("episode-*")),
            **{path.name: path.read_text() for path in checkpoints.iterdir() if path.is_file()},
        },
        "states": {
            name: digest for name, digest in _digests(checkpoints).items() if Path(name).name not in _OF_THIS_RUN
        },
        "counters": {path.parent.name: _counters(path) for path in checkpoints.glob("episode-*/run.json")},
        "result": _result(json.loads((run / "result.json").read_text())),
        "tensorboard": shown_by_tensorboard(run / "tensorboard"),
        "stray": stray_files(run),
    }


_OF_THIS_RUN = ("run.json", "manifest.json")
"""Hold the configuration, and so the path of the run."""


def _calm(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def _counters(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    return {key: content[key] for key in ("format", "state", "modules", "datasets", "changes") if key in content}


def _result(content: dict[str, Any]) -> dict[str, Any]:
    content["policy_path"] = Path(content["policy_path"]).name
    return {key: value for key, value in content.items() if key != "seconds"}


def _digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of each file under a folder, by its path there."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tree_of(folder: Path) -> dict[str, str]:
    """All that is under a folder: digest of each file, and folders."""
    folders = {f"{path.relative_to(folder)}/": "" for path in folder.rglob("*") if path.is_dir()}
    return {**folders, **_digests(folder)}


def stray_files(run: Path) -> list[str]:
    """What was written aside and is still there: a run that came to its end has none, however often it was killed."""
    found = [path for path in run.rglob("*") if path.name.endswith((".partial", ".replaced", ".removed"))]
    known = {"latest", "best"}
    listed = [
        path
        for path in (run / "checkpoints").glob("*")
        if path.name not in known and not (path / "run.json").is_file() and path not in found
    ]
    return sorted(str(path.relative_to(run)) for path in [*found, *listed])


def shown_by_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each event of each tag, but for those under ``time/``, once TensorBoard has dropped what a
    resumed run has replaced.
    """
    if not folder.exists():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells what it drops
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=True).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def differences(record: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two records, with the first thing that differs in each."""
    return [f"{name} ({_first(record[name], other[name])})" for name in record if record[name] != other[name]]


def _first(value: Any, other: Any) -> str:
    if isinstance(value, dict) and isinstance(other, dict):
        for key in sorted({*value, *other}):
            if value.get(key) != other.get(key):
                return f"{key}: {_first(value.get(key), other.get(key))}"
    if isinstance(value, list) and isinstance(other, list):
        for index, (one, two) in enumerate(zip(value, other, strict=False)):
            if one != two:
                return f"{index}: {_first(one, two)}"
        return f"{len(value)} and {len(other)} entries"
    return f"{_short(value)} and {_short(other)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
