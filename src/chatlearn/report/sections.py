"""The sections of a report: from the data of a run to HTML. All text of the run goes through ``escape``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from chatlearn.observe.headline import HEADLINES
from chatlearn.observe.summary import phase_seconds
from chatlearn.report.alarms import (
    CLIP_FRAC_LEVEL,
    MISMATCH_KL_LEVELS,
    MISMATCH_MAX_LEVEL,
    SIGNAL_LEVEL,
    UNFINISHED_LEVEL,
    find_alarms,
)
from chatlearn.report.charts import number, share_bar, stacked_bars
from chatlearn.report.markup import (
    grid_of,
    html_table,
    legend_of,
    missing_note,
    note,
    panel_of,
    shown_value,
    table_of,
)
from chatlearn.report.rollouts import distributions, groups
from chatlearn.report.run import Points, RunData
from chatlearn.report.tokens import tokens

_MAX_BARS = 120
HEALTH = (
    *("mismatch_kl", "mismatch_max", "entropy", "clip_frac", "approx_kl", "signal", "reward_std", "finished"),
    *("grad_norm", "kl_coef"),
)
"""Last parts of metric names, in order of display."""

LEVELS: Mapping[str, tuple[float, ...]] = {
    "mismatch_kl": MISMATCH_KL_LEVELS,
    "mismatch_max": (MISMATCH_MAX_LEVEL,),
    "clip_frac": (CLIP_FRAC_LEVEL,),
    "signal": (SIGNAL_LEVEL,),
    "finished": (1 - UNFINISHED_LEVEL,),
}
"""Metric -> levels of its alarms."""

_FIRST_COLUMNS = ("sample_id", "prompt", "response", "answer", "reward", "rewards", "finished")


def title_of(run: RunData) -> str:
    """Name of the run, how it ended, its figures, and what somebody should look at."""
    status = str(run.result.get("status", "unknown"))
    kind = status if status in ("finished", "running", "interrupted", "failed") else "unknown"
    tiles = [
        ("episodes", str(run.result.get("episodes", run.rows[-1]["episode"] if run.rows else 0))),
        ("time", _duration(sum(phase for row in run.rows for phase in phase_seconds(row).values()))),
        *((name.replace("_", " "), number(run.result[name])) for name in _figures(run)),
        *_change_tiles(run),
    ]
    boxes = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    name = escape(run.folder.absolute().name)
    return (
        f'<h1>{name} <span class="status {kind}">{escape(status)}</span></h1><dl class="tiles">{boxes}</dl>'
        f"{_alarms(run)}"
    )


def curves(run: RunData) -> str:
    """The headline metrics and reward components, training and evaluation in one frame."""
    panels = [panel_of(name, found) for name in HEADLINES if (found := run.ending_in(name, evaluations=True))]
    if run.components:
        panels.append(panel_of("reward components", run.components))
    missing = "No module logs a metric called " + ", ".join(HEADLINES) + "."
    return grid_of(panels) or missing_note(missing if run.rows else "metrics.jsonl is missing or empty.")


def health(run: RunData) -> str:
    """Metrics that show whether the optimisation works, with the levels from which on they are alarming."""
    panels = [panel_of(name, found, LEVELS.get(name, ())) for name in HEALTH if (found := run.ending_in(name))]
    missing = "No module logs a metric called " + ", ".join(HEALTH) + "."
    levels = ", ".join(f"{name} {' and '.join(map(number, LEVELS[name]))}" for name in LEVELS if run.ending_in(name))
    return grid_of(panels) + (note(f"Broken lines mark levels of alarms: {levels}.") if levels else "") or (
        missing_note(missing if run.rows else "metrics.jsonl is missing or empty.")
    )


def metrics(run: RunData) -> str:
    """Every other metric: a chart where it changes, a row of a table where it does not."""
    shown = {label for name in HEADLINES for label in run.ending_in(name, evaluations=True)}
    shown |= {label for name in HEALTH for label in run.ending_in(name)} | set(run.components)
    rest = {name: points for name, points in run.series.items() if not name.startswith("time/") and name not in shown}
    constant = {name: points for name, points in rest.items() if _is_constant(points)}
    panels = [panel_of(name, {name: points}) for name, points in rest.items() if name not in constant]
    table = table_of(("metric", "value in all episodes"), [(name, number(p[0][1])) for name, p in constant.items()])
    if not rest:
        return missing_note("No further metrics." if run.rows else "metrics.jsonl is missing or empty.")
    return grid_of(panels) + (table if constant else "")


def phases(run: RunData) -> str:
    """Where the time of each episode went."""
    times = [(row["episode"], phase_seconds(row)) for row in run.rows]
    totals: dict[str, float] = {}
    for _, parts in times:
        for name, seconds in parts.items():
            totals[name] = totals.get(name, 0.0) + seconds
    whole = sum(totals.values())
    if not whole:
        return missing_note("There are no times in metrics.jsonl.")
    rows = [
        (name, f"{number(seconds)} s", f"{seconds / whole:.1%}", f"{number(1000 * seconds / len(times))} ms")
        for name, seconds in totals.items()
    ]
    repeated = [name for name in totals if name != "setup"]  # which comes once, and would dwarf the rest
    bars, remark = _bars([(episode, {name: parts.get(name, 0.0) for name in repeated}) for episode, parts in times])
    table = table_of(("phase", "total", "share", "per episode"), rows)
    return legend_of(repeated) + stacked_bars(bars, repeated) + remark + table


def replicas(run: RunData) -> str:
    """Work and waiting of each replica."""
    if not run.loads:
        return missing_note("trace.json is missing or holds no calls (runtime.trace writes it).")
    whole = sum(seconds for row in run.rows for seconds in phase_seconds(row).values()) or math.inf
    head = "<tr><th>replica</th><th>calls</th><th>work</th><th>waiting</th><th>wait per call</th><th></th></tr>"
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{load.calls}</td><td>{number(load.busy_seconds)} s</td>"
        f"<td>{number(load.waiting_seconds)} s</td><td>{number(1000 * load.waiting_seconds / load.calls)} ms</td>"
        f"<td>{share_bar(load.busy_seconds / whole, load.waiting_seconds / whole)}</td></tr>"
        for name, load in run.loads.items()
    )
    remark = (
        "<p class=note>The bars show work and waiting as shares of the run's time. Waiting is from a call to the start "
        "of its work; waits of several calls overlap.</p>"
    )
    return f'{legend_of(("work", "waiting"))}<div class="scroll"><table>{head}{body}</table></div>{remark}'


def samples(run: RunData) -> str:
    """A few samples of the first and of the last episode."""
    parts: list[str] = []
    for name, rows in run.samples.items():
        columns = _columns(rows)
        body = [[shown_value(row.get(column)) for column in columns] for row in rows]
        parts.append(f"<h3>{escape(name)}</h3>" + html_table(columns, body))
    return "".join(parts) or missing_note("There are no files in samples/ (runtime.log_samples writes them).")


def configuration(run: RunData) -> str:
    """``config.yaml``; what somebody set stands out from the defaults."""
    if not run.config_lines:
        return missing_note("config.yaml is missing.")
    chosen = [line for line in run.config_lines if _source(line) not in ("", "default")]
    return (
        f"<h3>Set for this run</h3>{_yaml(chosen) if chosen else missing_note('Nothing; every key has its default.')}"
        f"<details><summary>All keys, with their sources</summary>{_yaml(run.config_lines)}</details>"
    )


def checkpoints(run: RunData) -> str:
    """What can be resumed from."""
    rows = [(each.name, _bytes(each.num_bytes), ", ".join(each.pointers)) for each in run.checkpoints]
    missing = "No checkpoints (runtime.save_episode_interval writes them)."
    return table_of(("checkpoint", "size", ""), rows) if rows else missing_note(missing)


SECTIONS: Mapping[str, Callable[[RunData], str]] = {
    "Curves": curves,
    "Health": health,
    "Groups": groups,
    "Distributions": distributions,
    "Tokens": tokens,
    "Samples": samples,
    "Phases": phases,
    "Replicas": replicas,
    "Metrics": metrics,
    "Configuration": configuration,
    "Checkpoints": checkpoints,
}
"""Title -> what makes the section, in order."""


def _alarms(run: RunData) -> str:
    found = [f'<li class="{alarm.level}"><b>{alarm.level}</b> {escape(alarm.text)}</li>' for alarm in find_alarms(run)]
    return f'<ul class="alarms" role="alert">{"".join(found)}</ul>' if found else ""


def _figures(run: RunData) -> list[str]:
    names = ("start_accuracy", "final_accuracy", "best_metric", "best_episode")
    return [name for name in names if isinstance(run.result.get(name), (int, float))]


def _change_tiles(run: RunData) -> Iterable[tuple[str, str]]:
    """Headline metrics: the last value, and the first."""
    for name in HEADLINES:
        for label, points in list(run.ending_in(name, evaluations=True).items())[:1]:
            values = [value for _, value in points if math.isfinite(value)]
            if values:
                yield label, f"{number(values[0])} → {number(values[-1])}"


def _bars(times: Sequence[tuple[int, Mapping[str, float]]]) -> tuple[list[tuple[str, dict[str, float]]], str]:
    """At most ``_MAX_BARS`` bars, each the mean of neighbouring episodes, and what to say about that."""
    size = math.ceil(len(times) / _MAX_BARS)
    bars: list[tuple[str, dict[str, float]]] = []
    for start in range(0, len(times), size):
        part = times[start : start + size]
        mean = {name: sum(parts[name] for _, parts in part) / len(part) for name in part[0][1]}
        label = f"{part[0][0]}" if len(part) == 1 else f"{part[0][0]} to {part[-1][0]}"
        bars.append((f"episode {label}", mean))
    return bars, f"<p class=note>Each bar is the mean of {size} episodes; seconds.</p>" if size > 1 else (
        "<p class=note>Seconds of each episode.</p>"
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in _FIRST_COLUMNS if name in names] + [name for name in names if name not in _FIRST_COLUMNS]


def _yaml(lines: Sequence[str]) -> str:
    shown: list[str] = []
    for line in lines:
        text, mark, source = line.rpartition("  # ")
        kind = "default" if source == "default" else "set"
        shown.append(f'<span class="{kind}">{escape(text if mark else line)}</span>')
        shown.append(f'<span class="source">{escape(mark + source if mark else "")}</span>\n')
    return f"<pre>{''.join(shown)}</pre>"


def _source(line: str) -> str:
    """The source that a line of ``config.yaml`` names; empty for a section."""
    found = re.fullmatch(r"\s*\S.*?:? \S.*  # (.+)", line)
    return found[1] if found else ""


def _is_constant(points: Points) -> bool:
    return math.isfinite(points[0][1]) and all(value == points[0][1] for _, value in points)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02.0f} s" if minutes else f"{rest:.1f} s"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
