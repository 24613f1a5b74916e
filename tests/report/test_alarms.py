"""What a report warns of. Levels are tested at both sides; that they are the right ones can't be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from report_page import Page, write_rows

from chatlearn.errors import CheckpointError
from chatlearn.report import alarm_lines, write_report


def _lines(folder: Path, **metrics: Sequence[float | None]) -> list[str]:
    """The alarms of a run whose modules ``m`` log these values in its episodes."""
    length = max(map(len, metrics.values()))
    rows = [
        {
            "episode": index + 1,
            **{f"m/{name}": values[index] for name, values in metrics.items() if index < len(values)},
        }
        for index in range(length)
    ]
    write_rows(folder, "metrics.jsonl", *rows)
    return alarm_lines(folder)


@pytest.mark.parametrize(
    ("metrics", "level", "words"),
    [
        (
            {"mismatch_kl": [1e-4, 1.1e-3, 2e-4]},
            "warning",
            "m/mismatch_kl reached 0.0011 in episode 2 (above the level in",
        ),
        (
            {"mismatch_kl": [0.002, 0.02, 0.001]},
            "alarm",
            "0.02 in episode 2 (above the level in 2 of 3 episodes, last 0.001)",
        ),
        ({"mismatch_kl": [5e-4], "mismatch_max": [2.4]}, "warning", "m/mismatch_max reached 2.4 in episode 1"),
        (
            {"mismatch_kl": [5e-4, None]},
            "alarm",
            "m/mismatch_kl is NaN or infinite in 1 of 2 episodes, first in episode 2",
        ),
        ({"loss": [0.1, None, None]}, "alarm", "m/loss is NaN or infinite in 2 of 3 episodes, first in episode 2"),
        ({"grad_norm": [None]}, "alarm", "m/grad_norm is NaN or infinite"),
        ({"entropy": [1.0] * 5 + [0.5] + [0.09] * 5}, "warning", "m/entropy fell from 1 to 0.09 (warning below 10%"),
        ({"signal": [0.9, 0.0, 0.0, 0.0, 0.0, 0.0]}, "alarm", "m/signal is 0: no group's rewards differ any more"),
        ({"signal": [0.09, 0.09, 0.09]}, "warning", "m/signal is 0.09 (warning below 0.1)"),
        ({"clip_frac": [0.0, 0.31, 0.31, 0.31, 0.31, 0.31]}, "warning", "m/clip_frac is 0.31 (warning above 0.3)"),
        (
            {"finished": [1.0, 0.6, 0.6, 0.6, 0.6, 0.6]},
            "warning",
            "m/finished is 0.6: 40% of the responses are cut off",
        ),
    ],
)
def test_signs_of_trouble_are_named(
    metrics: dict[str, list[float | None]], level: str, words: str, tmp_path: Path
) -> None:
    (line,) = _lines(tmp_path, **metrics)
    assert line.startswith(f"{level}: ")
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "metrics",
    [
        {"mismatch_kl": [9e-4] * 4, "mismatch_max": [2.3] * 4},
        {"entropy": [1.0] * 5 + [0.11] * 5},
        {"entropy": [1.0] * 5 + [0.01] * 4},  # too few episodes for a start and an end
        {"signal": [0.11] * 5, "clip_frac": [0.29] * 5, "finished": [0.71] * 5},
        {"signal": [0.0, 0.0], "clip_frac": [1.0, 1.0], "finished": [0.0, 0.0]},  # too few to be a state
        {"signal": [0.0] * 9 + [0.6] * 5, "clip_frac": [0.9] * 9 + [0.1] * 5},  # what has passed
        {"signal": [0.0] * 10, "entropy": [1.0] * 5 + [0.0] * 5, "accuracy": [0.2] * 5 + [0.96] * 5},  # solved
        {"reward": [None, 1.0]},
    ],
)
def test_a_run_in_good_health_has_no_alarms(metrics: dict[str, list[float | None]], tmp_path: Path) -> None:
    assert _lines(tmp_path, **metrics) == []


def test_entropy_of_an_unsolved_task_is_an_alarm_whatever_evaluations_say(tmp_path: Path) -> None:
    rows = [{"episode": e, "m/entropy": 1.0 if e < 6 else 0.01, "eval/m/accuracy": 1.0} for e in range(1, 11)]
    write_rows(tmp_path, "metrics.jsonl", *rows)
    assert len(alarm_lines(tmp_path)) == 1


def test_entropies_of_sampler_and_trainer_are_one_warning(tmp_path: Path) -> None:
    rows = [
        {"episode": e, "a/entropy": 1.0 if e < 6 else 0.0, "b/entropy": 1.0 if e < 6 else 0.0} for e in range(1, 11)
    ]
    write_rows(tmp_path, "metrics.jsonl", *rows)
    assert [line.split()[1] for line in alarm_lines(tmp_path)] == ["a/entropy"]


def test_alarms_come_before_warnings(tmp_path: Path) -> None:
    lines = _lines(tmp_path, mismatch_kl=[0.002], signal=[0.0] * 3, clip_frac=[0.9] * 3)
    assert [line.split(":")[0] for line in lines] == ["alarm", "warning", "warning"]


def _with_samples(folder: Path, finished: Sequence[Any]) -> list[str]:
    rows = [{"sample_id": index, "finished": value} for index, value in enumerate(finished)]
    write_rows(folder, "samples/episode-000001.jsonl", *rows)
    return _lines(folder, reward=[1.0])


def test_without_a_metric_unfinished_responses_are_counted_in_the_samples(tmp_path: Path) -> None:
    (line,) = _with_samples(tmp_path, [True, False, False, "unknown", None])
    assert "finished (of logged samples) is 0.3333: 67% of the responses are cut off" in line


def test_samples_that_do_not_say_whether_they_finished_raise_no_alarm(tmp_path: Path) -> None:
    assert _with_samples(tmp_path, [None, None, None, "no"]) == []


def test_alarms_stand_at_the_top_of_the_page(tmp_path: Path) -> None:
    _lines(tmp_path, mismatch_kl=[0.02], clip_frac=[0.9] * 3)
    page = Page(write_report(tmp_path))
    assert "alarm m/mismatch_kl reached 0.02 in episode 1" in " ".join(page.text[""].split())
    (box,) = page.find("ul", class_="alarms")
    assert box["role"] == "alert"
    assert [item["class"] for item in page.find("li") if item.get("class") in ("alarm", "warning")] == [
        "alarm",
        "warning",
    ]


def test_a_page_without_alarms_has_no_box_for_them(tmp_path: Path) -> None:
    _lines(tmp_path, clip_frac=[0.1] * 3)
    assert Page(write_report(tmp_path)).find("ul", class_="alarms") == []


def test_levels_are_marked_in_charts_that_reach_them(tmp_path: Path) -> None:
    _lines(tmp_path, clip_frac=[0.1, 0.5, 0.2], mismatch_kl=[1e-4, 2e-4, 1e-4])
    page = Page(write_report(tmp_path))
    assert len(page.find("line", class_="level")) == 1
    assert "mismatch_kl 0.001 and 0.01, clip_frac 0.3" in " ".join(page.text["health"].split())


def test_metrics_of_health_are_shown_once(tmp_path: Path) -> None:
    _lines(tmp_path, clip_frac=[0.1, 0.2], entropy=[1.0, 2.0], other=[1.0, 2.0])
    page = Page(write_report(tmp_path))
    for name in ("m/clip_frac", "m/entropy", "m/other"):
        assert len(page.find("g", **{"data-label": name})) == 1
    assert "m/other" in page.text["metrics"]
    assert "m/clip_frac" not in page.text["metrics"]


def test_alarms_about_a_folder_that_is_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        alarm_lines(tmp_path)
