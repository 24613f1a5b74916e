"""An episode as a small table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

_PHASE_END = "_seconds"


def summary_table(row: Mapping[str, Any]) -> str:
    """Metrics and times of an episode, a few lines of aligned text.

    Args:
        row: as in ``metrics.jsonl``.

    Returns:
        First the metrics by module, evaluations last; then counts; then the phases with their share of the episode.
    """
    metrics = {name: value for name, value in row.items() if "/" in name and not name.startswith("time/")}
    counts = {name: value for name, value in row.items() if "/" not in name and name not in ("episode", "non_finite")}
    title = f"episode {row['episode']}" if "episode" in row else "episode"
    names = sorted(metrics, key=lambda name: (name.startswith("eval/"), name))
    lines = [(name, _number(metrics[name], row, name)) for name in names]
    lines += [(name, _number(value, row, name)) for name, value in counts.items()]
    return "\n".join([title, *_aligned(lines), *_aligned(_phases(row))])


def phase_seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Phase -> seconds, in order of the row; without the total."""
    return {
        name.removeprefix("time/").removesuffix(_PHASE_END): float(value)
        for name, value in row.items()
        if name.startswith("time/") and name.endswith(_PHASE_END) and name != "time/episode_seconds"
    }


def _phases(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    phases = phase_seconds(row)
    total = row.get("time/episode_seconds") or sum(phases.values())
    lines = [(f"{name} time", f"{_seconds(value)}  {value / total:4.0%}") for name, value in phases.items() if total]
    if total:
        lines.append(("episode time", _seconds(total)))
    if "time/samples_per_second" in row:
        lines.append(("samples per second", f"{row['time/samples_per_second']:.1f}"))
    return lines


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 100 else f"{value:.3f} s"


def _number(value: Any, row: Mapping[str, Any], name: str) -> str:
    if value is None:
        return str(row.get("non_finite", {}).get(name, "not a number"))
    return f"{value:.4g}" if isinstance(value, Real) and not isinstance(value, int) else str(value)


def _aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in lines), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in lines]
