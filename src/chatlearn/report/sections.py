"""The sections of a report: from the data of a run to HTML. All text of the run goes through ``escape``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from chatlearn.guards import is_list
from chatlearn.observe.headline import HEADLINES
from chatlearn.observe.summary import phase_seconds
from chatlearn.report.charts import NUM_COLOURS, line_chart, number, share_bar, stacked_bars
from chatlearn.report.run import Points, RunData

_MAX_BARS = 120
_MAX_TEXT = 600
_FIRST_COLUMNS = ("sample_id", "prompt", "response", "answer", "reward", "rewards", "finished")


def title_of(run: RunData) -> str:
    """Name of the run, how it ended, and its figures."""
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
    return f'<h1>{name} <span class="status {kind}">{escape(status)}</span></h1><dl class="tiles">{boxes}</dl>'


def curves(run: RunData) -> str:
    """The headline metrics, training and evaluation in one frame."""
    panels = [_panel(name, _ending_in(run, name)) for name in HEADLINES if _ending_in(run, name)]
    missing = "No module logs a metric called " + ", ".join(HEADLINES) + "."
    return _grid(panels) or _missing(missing if run.rows else "metrics.jsonl is missing or empty.")


def metrics(run: RunData) -> str:
    """Every other metric: a chart where it changes, a row of a table where it does not."""
    rest = {
        name: points
        for name, points in run.series.items()
        if not name.startswith("time/") and name.rsplit("/", 1)[-1] not in HEADLINES
    }
    constant = {name: points for name, points in rest.items() if _is_constant(points)}
    panels = [_panel(name, {name: points}) for name, points in rest.items() if name not in constant]
    table = _table(("metric", "value in all episodes"), [(name, number(p[0][1])) for name, p in constant.items()])
    if not rest:
        return _missing("No further metrics." if run.rows else "metrics.jsonl is missing or empty.")
    return _grid(panels) + (table if constant else "")


def phases(run: RunData) -> str:
    """Where the time of each episode went."""
    times = [(row["episode"], phase_seconds(row)) for row in run.rows]
    totals: dict[str, float] = {}
    for _, parts in times:
        for name, seconds in parts.items():
            totals[name] = totals.get(name, 0.0) + seconds
    whole = sum(totals.values())
    if not whole:
        return _missing("There are no times in metrics.jsonl.")
    rows = [
        (name, f"{number(seconds)} s", f"{seconds / whole:.1%}", f"{number(1000 * seconds / len(times))} ms")
        for name, seconds in totals.items()
    ]
    repeated = [name for name in totals if name != "setup"]  # which comes once, and would dwarf the rest
    bars, note = _bars([(episode, {name: parts.get(name, 0.0) for name in repeated}) for episode, parts in times])
    table = _table(("phase", "total", "share", "per episode"), rows)
    return _legend(repeated) + stacked_bars(bars, repeated) + note + table


def replicas(run: RunData) -> str:
    """Work and waiting of each replica."""
    if not run.loads:
        return _missing("trace.json is missing or holds no calls (runtime.trace writes it).")
    whole = sum(seconds for row in run.rows for seconds in phase_seconds(row).values()) or math.inf
    head = "<tr><th>replica</th><th>calls</th><th>work</th><th>waiting</th><th>wait per call</th><th></th></tr>"
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{load.calls}</td><td>{number(load.busy_seconds)} s</td>"
        f"<td>{number(load.waiting_seconds)} s</td><td>{number(1000 * load.waiting_seconds / load.calls)} ms</td>"
        f"<td>{share_bar(load.busy_seconds / whole, load.waiting_seconds / whole)}</td></tr>"
        for name, load in run.loads.items()
    )
    note = (
        "<p class=note>The bars show work and waiting as shares of the run's time. Waiting is from a call to the start "
        "of its work; waits of several calls overlap.</p>"
    )
    return f'{_legend(("work", "waiting"))}<div class="scroll"><table>{head}{body}</table></div>{note}'


def samples(run: RunData) -> str:
    """A few samples of the first and of the last episode."""
    parts: list[str] = []
    for name, rows in run.samples.items():
        columns = _columns(rows)
        body = [[_sample_value(row.get(column)) for column in columns] for row in rows]
        parts.append(f"<h3>{escape(name)}</h3>" + _html_table(columns, body))
    return "".join(parts) or _missing("There are no files in samples/ (runtime.log_samples writes them).")


def configuration(run: RunData) -> str:
    """``config.yaml``; what somebody set stands out from the defaults."""
    if not run.config_lines:
        return _missing("config.yaml is missing.")
    chosen = [line for line in run.config_lines if _source(line) not in ("", "default")]
    return (
        f"<h3>Set for this run</h3>{_yaml(chosen) if chosen else _missing('Nothing; every key has its default.')}"
        f"<details><summary>All keys, with their sources</summary>{_yaml(run.config_lines)}</details>"
    )


def checkpoints(run: RunData) -> str:
    """What can be resumed from."""
    rows = [(each.name, _bytes(each.num_bytes), ", ".join(each.pointers)) for each in run.checkpoints]
    missing = "No checkpoints (runtime.save_episode_interval writes them)."
    return _table(("checkpoint", "size", ""), rows) if rows else _missing(missing)


SECTIONS: Mapping[str, Callable[[RunData], str]] = {
    "Curves": curves,
    "Samples": samples,
    "Phases": phases,
    "Replicas": replicas,
    "Metrics": metrics,
    "Configuration": configuration,
    "Checkpoints": checkpoints,
}
"""Title -> what makes the section, in order."""


def _figures(run: RunData) -> list[str]:
    names = ("start_accuracy", "final_accuracy", "best_metric", "best_episode")
    return [name for name in names if isinstance(run.result.get(name), (int, float))]


def _change_tiles(run: RunData) -> Iterable[tuple[str, str]]:
    """Headline metrics: the last value, and the first."""
    for name in HEADLINES:
        for label, points in list(_ending_in(run, name).items())[:1]:
            values = [value for _, value in points if math.isfinite(value)]
            if values:
                yield label, f"{number(values[0])} → {number(values[-1])}"


def _ending_in(run: RunData, name: str) -> dict[str, Points]:
    return {key: points for key, points in run.series.items() if key.rsplit("/", 1)[-1] == name}


def _panel(title: str, series: Mapping[str, Points]) -> str:
    dotted = [name for name in series if name.startswith("eval/")]
    chart = line_chart(series, dotted) or _missing("no finite values")
    legend = _legend(series) if len(series) > 1 else ""
    caption = escape(title if len(series) > 1 else next(iter(series)))
    return f"<figure><figcaption>{caption}</figcaption>{legend}{chart}</figure>"


def _grid(panels: Sequence[str]) -> str:
    return f'<div class="grid-of-charts">{"".join(panels)}</div>' if panels else ""


def _legend(names: Iterable[str]) -> str:
    keys = [f'<li class="c{i % NUM_COLOURS}"><i></i>{escape(name)}</li>' for i, name in enumerate(names)]
    return f'<ul class="legend">{"".join(keys)}</ul>'


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


def _sample_value(value: Any) -> str:
    """A value of a sample; long ones can be opened."""
    if isinstance(value, float):
        return number(value)
    if is_list(value) and value and all(isinstance(each, (int, float)) for each in value):
        text = ", ".join(number(each) for each in value)
    else:
        text = "" if value is None else str(value)
    if len(text) <= 160:
        return f'<span class="text">{escape(text)}</span>'
    more = escape(text[:_MAX_TEXT]) + (" …" if len(text) > _MAX_TEXT else "")
    return f'<details><summary>{escape(text[:100])} …</summary><span class="text">{more}</span></details>'


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _html_table(head, [[escape(cell) for cell in row] for row in rows])


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the head is text."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{names}</tr>{body}</table></div>'


def _missing(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>'


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
