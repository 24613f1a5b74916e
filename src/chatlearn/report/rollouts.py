"""Sections about what the policy sampled: groups side by side, and distributions over episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from chatlearn.guards import is_list
from chatlearn.report.charts import band_chart, line_chart, number
from chatlearn.report.markup import figure_of, grid_of, legend_of, missing_note, note, shown_text
from chatlearn.report.run import LoggedNumbers, Points, RunData, components_of, finite, length_of, number_in, reward_of

MAX_GROUPS = 4
"""Groups of an episode that a page shows."""

MAX_RESPONSES = 16
"""Responses of a group that a page shows."""

_MAX_COMPONENTS = 12
_SHADES = 3
"""Shades of better and of worse, ``better3`` and so on in the style sheet."""

_NOTHING = 1e-4
"""Share of a group's largest advantage below which one is rounding, and has no colour."""

Row = Mapping[str, Any]


def groups(run: RunData) -> str:
    """Groups of the first and of the last logged episode: a prompt, and its responses beside each other."""
    parts: list[str] = []
    for name, rows in run.first_and_last.items():
        found = [group for group in _groups(rows) if len(group) > 1]
        if found:
            more = note(f"{MAX_GROUPS} of {len(found)} logged groups.") if len(found) > MAX_GROUPS else ""
            shown = "".join(_group(group) for group in found[:MAX_GROUPS])
            parts.append(f"<details open><summary>{escape(name)}</summary>{shown}{more}</details>")
    if not parts:
        return missing_note(
            "No two logged samples belong to one group (runtime.num_inference_per_prompt makes groups, "
            "runtime.log_samples has to have room for one)."
        )
    legend = (
        "The best response of a group comes first. Colours show the advantage, or the distance from the group's mean "
        "reward where no advantages are logged: "
    )
    keys = "".join(
        f'<i class="{shade}"></i>' for shade in ("worse3", "worse2", "worse1", "better1", "better2", "better3")
    )
    return f'<p class="note shades">{legend}worst {keys} best of the group.</p>' + "".join(parts)


def distributions(run: RunData) -> str:
    """Rewards and response lengths of logged samples over the episodes; reward components if no metrics show them."""
    logged = run.logged
    names = list(dict.fromkeys(name for episode in logged for name in episode.components))[:_MAX_COMPONENTS]
    names = [] if run.components else names
    rewards = band_chart("reward", [(each.episode, each.rewards) for each in logged if each.rewards])
    lengths = band_chart("response tokens", [(each.episode, each.lengths) for each in logged if each.lengths])
    components = line_chart({name: _means(logged, name) for name in names})
    charts = {
        "reward": rewards,
        "response tokens": lengths,
        "mean of each reward component": components and legend_of(names) + components,
    }
    panels = [figure_of(caption, chart) for caption, chart in charts.items() if chart]
    if not panels:
        return missing_note("No rewards and no lengths in samples/ (runtime.log_samples writes them).")
    counts = [max(len(each.rewards), len(each.lengths)) for each in logged]
    per_episode = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    skipped = len(run.sample_files) - len(logged)
    of_all = f", of {len(logged)} of {len(run.sample_files)} episodes" if skipped > 0 else ""
    return grid_of(panels) + note(
        f"From the logged samples only ({per_episode} an episode{of_all}; runtime.log_samples), not from all samples: "
        "the line is the median, the bands hold the middle half and all of them."
    )


def _means(logged: Sequence[LoggedNumbers], name: str) -> Points:
    values = [(each.episode, each.components.get(name)) for each in logged]
    return [(episode, sum(found) / len(found) if found else math.nan) for episode, found in values]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that share a group id, in the order of the groups."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if "group_id" in row:
            found.setdefault(str(row["group_id"]), []).append(row)
    return list(found.values())


def _group(rows: Sequence[Row]) -> str:
    """A prompt, what its group has in common, and a card for each response."""
    rewards = [reward for row in rows if (reward := reward_of(row)) is not None]
    mean = sum(rewards) / len(rewards) if rewards else math.nan
    scores = [_score(row, mean) for row in rows]
    largest = max((abs(score) for score in scores if score is not None), default=0.0)
    ranks = [-math.inf if score is None else score for score in scores]
    order = sorted(range(len(rows)), key=lambda index: ranks[index], reverse=True)
    cards = "".join(_card(rows[index], scores[index], largest) for index in order[:MAX_RESPONSES])
    words = [f"{len(rows)} responses" if len(rows) <= MAX_RESPONSES else f"{MAX_RESPONSES} of {len(rows)} responses"]
    if rewards:
        spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1))
        words.append(
            f"reward {number(mean)} ± {number(spread)}" if spread else f"all rewards {number(mean)}: no signal"
        )
    prompt, answer = rows[0].get("prompt"), rows[0].get("answer")
    asked = f"<p><b>prompt</b> {shown_text(str(prompt), 400)}</p>" if prompt is not None else ""
    wanted = f"<p><b>answer</b> {shown_text(str(answer))}</p>" if answer is not None else ""
    title = f"<p class=dim>group {escape(str(rows[0]['group_id']))}: {escape(', '.join(words))}</p>"
    return f'<div class="group">{title}{asked}{wanted}<div class="cards">{cards}</div></div>'


def _card(row: Row, score: float | None, largest: float) -> str:
    """A response with its numbers."""
    advantages = row.get("advantages")
    label = "reward − mean" if _advantage(row) is None else "advantage"
    if is_list(advantages):
        label = "mean advantage"
    components = components_of(row)
    length = length_of(row)
    numbers = [
        ("reward", _text_of(reward_of(row))),
        (label, "" if score is None else f"{score:+.4g}" if score else "0"),
        ("tokens", _text_of(length)),
        *((name, _text_of(number_in(components, name))) for name in list(components)[:_MAX_COMPONENTS]),
    ]
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers if value)
    cut_off = '<span class="cut">cut off</span>' if row.get("finished") is False else ""
    title = f"<p class=dim>sample {escape(str(row.get('sample_id')))} {cut_off}</p>"
    response = shown_text(str(row.get("response", "")), 300)
    return f'<article class="card {_shade(score, largest)}">{title}<dl>{pairs}</dl>{response}</article>'


def _score(row: Row, mean: float) -> float | None:
    """By what a response is coloured: its advantage, else its reward's distance from the mean."""
    advantage, reward = _advantage(row), reward_of(row)
    return advantage if advantage is not None else None if reward is None else reward - mean


def _advantage(row: Row) -> float | None:
    """The advantage of a response, or the mean of its tokens' advantages."""
    advantages = row.get("advantages")
    if not is_list(advantages):
        return number_in(row, "advantages")
    values = [value for each in advantages if (value := finite(each)) is not None]
    return sum(values) / len(values) if values else None


def _shade(score: float | None, largest: float) -> str:
    if score is None or abs(score) <= _NOTHING * largest:
        return ""
    return f"{'better' if score > 0 else 'worse'}{math.ceil(_SHADES * abs(score) / largest)}"


def _text_of(value: float | None) -> str:
    return "" if value is None else number(value)
