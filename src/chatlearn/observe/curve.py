"""The learning curve of a run as a picture, drawn from its ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chatlearn.observe.headline import HEADLINES

# pyright: reportUnknownMemberType=false
# matplotlib leaves some types open.

PANELS = {
    "reward": "reward per sample",
    "accuracy": "accuracy",
    "kl": "KL to the reference (nats per token)",
    "loss": "loss",
}


def draw_learning_curve(
    metrics: Path, picture: Path, title: str, marks: dict[str, tuple[int, float]] | None = None
) -> str | None:
    """Draws the headline metrics over episodes.

    Args:
        metrics: a run's ``metrics.jsonl``.
        picture: PNG to write.
        title: over the picture.
        marks: label -> (episode, accuracy) of points that were measured apart, such as a held-out test.

    Returns:
        Why there is no picture, or ``None``.
    """
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    series = {name: _series(rows, name) for name in HEADLINES}
    shown = [name for name in HEADLINES if series[name]]
    if not shown:
        return "no learning curve: no module logs a metric called " + ", ".join(HEADLINES)
    if find_spec("matplotlib") is None:
        return "no learning curve: matplotlib is not installed (pip install 'chatlearn[demo]')"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for label, points in series[name].items():
            style = {"marker": "o", "markersize": 3} if label.startswith("eval/") else {}
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1.4, **style)
        if name == "accuracy":
            for label, (episode, value) in (marks or {}).items():
                axis.plot(
                    [episode],
                    [value],
                    marker="*",
                    markersize=11,
                    linestyle="none",
                    label=f"{label}: {value:.3f}",
                )
            axis.set_ylim(0, 1.02)
        axis.set(xlabel="episode", title=PANELS[name])
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(picture, dpi=130)
    return None


def _series(rows: list[dict[str, Any]], name: str) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.rsplit("/", 1)[-1] == name:
                # a NaN or an infinity stands as null in the file; the line has a gap there
                found.setdefault(key, []).append((row["episode"], math.nan if value is None else value))
    return found
