"""The page of a run, taken apart with Python's own parser. What it looks like is for people."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import toys
from report_page import EVIL, Page, points_of, write_rows

import chatlearn
from chatlearn.errors import CheckpointError
from chatlearn.observe.spans import TraceFile
from chatlearn.report import write_report
from chatlearn.report.charts import line_chart, thinned
from chatlearn.report.run import RunData


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an engine, with a trace of two replicas beside it."""
    parent = tmp_path_factory.mktemp("runs")
    with toys.quick_runs():
        settings = toys.settings(
            parent, num_episode=4, eval_episode_interval=2, save_episode_interval=2, sinks=["jsonl"]
        )
        chatlearn.init(settings)
        toys.make_engine().learn()
    (parent / "toy" / "trace.json").unlink(missing_ok=True)
    trace = TraceFile(parent / "toy" / "trace.json")
    trace.add("policy[0]", "forward_step", 1.0, 3.5, 0.25)
    trace.add("policy[0]", "forward_step", 4.0, 4.5, 0.75)
    trace.add("reward[0]", "forward_step", 5.0, 5.125)
    trace.close()
    return parent / "toy"


def test_a_real_run(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("reward/reward", "learner/loss", "policy/action", "eval/reward/reward"):
        expected = [(row["episode"], row[name]) for row in rows if name in row]
        assert points_of(page, name) == [(episode, pytest.approx(value, rel=1e-3)) for episode, value in expected]
    assert len(points_of(page, "eval/reward/reward")) == 2
    assert "finished" in page.text[""]
    assert "toy" in page.text[""]
    for phase in ("experience", "train", "sync", "evaluate"):
        assert phase in page.text["phases"]
    assert len(page.find("rect", class_="c0")) >= 4  # a bar of each episode
    assert "num_episode: 4" in page.text["configuration"]
    assert "# dict" in page.text["configuration"]
    assert "# default" in page.text["configuration"]
    assert "num_samples 20" in " ".join(page.text["metrics"].split())  # the same in all episodes
    checkpoints = page.text["checkpoints"].split()
    assert "episode-000002" in checkpoints
    assert checkpoints[-1] == "latest"
    assert checkpoints.index("episode-000004") > checkpoints.index("episode-000002")


def test_samples_of_the_first_and_the_last_episode(run: Path) -> None:
    text = Page(write_report(run)).text["samples"]
    assert "episode-000001" in text
    assert "episode-000004" in text
    assert "episode-000002" not in text
    first = json.loads((run / "samples" / "episode-000001.jsonl").read_text().splitlines()[1])
    for name in ("prompt", "rewards", "action"):
        assert name in text
        assert f" {first[name]:.4g}" in text


def test_work_and_waiting_by_hand(run: Path) -> None:
    text = " ".join(Page(write_report(run)).text["replicas"].split())
    assert "policy[0] 2 3 s 1 s 500 ms" in text
    assert "reward[0] 1 0.125 s 0 s 0 ms" in text


def test_nothing_comes_from_elsewhere(run: Path) -> None:
    page = Page(write_report(run))
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            assert name != "style", f"{tag}: the policy of the page refuses inline styles"
            if name in ("src", "href", "xlink:href", "action"):
                assert (value or "").startswith("#"), (tag, value)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp|eval\(|innerHTML", page.source)
    policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.code[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_text_of_models_stays_text(tmp_path: Path) -> None:
    """In samples, names of metrics, of replicas, of the run, in the configuration and the result."""
    folder = tmp_path / "a <b>run</b> & more"
    sample = {"sample_id": 0, "prompt": EVIL, "response": EVIL * 50, "extra": {EVIL: [EVIL]}, EVIL: EVIL}
    write_rows(folder, "metrics.jsonl", *({"episode": e, f"m/{EVIL}": e, f"{EVIL}/reward": e, EVIL: 1} for e in (1, 2)))
    write_rows(folder, "samples/episode-000001.jsonl", sample)
    write_rows(folder, "result.json", {"status": EVIL, "episodes": EVIL})
    (folder / "config.yaml").write_bytes(f"runtime:  # {EVIL}\n  a: {EVIL}  # dict\n".encode("utf-8", "replace"))
    trace = TraceFile(folder / "trace.json")
    trace.add(EVIL, EVIL, 0, 1)
    trace.close()
    page = Page(write_report(folder, tmp_path / "out" / "page.html"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.find("img") == []
    assert page.find("b") == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    for section in ("samples", "curves", "metrics", "replicas", "configuration", ""):
        assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.text[section], section


FILES = ("metrics.jsonl", "config.yaml", "result.json")


@pytest.mark.parametrize("kept", FILES)
def test_whatever_is_missing_is_said(kept: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / kept).write_bytes((run / kept).read_bytes())
    page = Page(write_report(tmp_path))
    assert "There are no files in samples/" in page.text["samples"]
    assert "trace.json is missing" in page.text["replicas"]
    assert "No checkpoints" in page.text["checkpoints"]
    assert ("metrics.jsonl is missing" in page.text["curves"]) == (kept != "metrics.jsonl")
    assert ("no times" in page.text["phases"]) == (kept != "metrics.jsonl")
    assert ("config.yaml is missing" in page.text["configuration"]) == (kept != "config.yaml")
    assert ("unknown" in page.text[""]) == (kept != "result.json")


def _empty(folder: Path) -> Path:
    return folder


def _a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


@pytest.mark.parametrize("make", [_empty, _a_file, lambda folder: folder / "absent"])
def test_a_folder_that_is_no_run(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(CheckpointError, match=r"is not the folder of a run: .*Give a folder such as runs/<exp_name>"):
        write_report(path)
    assert list(tmp_path.glob("**/*.html")) == []


def test_a_run_in_the_middle_of_its_work(tmp_path: Path) -> None:
    """Torn lines, empty files, values that are not finite, half a result."""
    row = {"episode": 1, "a/loss": 1.0, "time/train_seconds": 2.0}
    write_rows(tmp_path, "metrics.jsonl", row, {**row, "episode": 2, "a/loss": None, "non_finite": {"a/loss": "nan"}})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**row, "episode": 3, "a/loss": 3.0}) + '\n{"episode": 4, "a/lo')
    (tmp_path / "result.json").write_text('{"status": "run')
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "episode-000001.jsonl").write_text("")
    (tmp_path / "trace.json").write_text('{"traceEvents":[\n{"ph":"X","na')
    (tmp_path / "checkpoints" / "episode-000002.partial").mkdir(parents=True)
    page = Page(write_report(tmp_path))
    assert points_of(page, "a/loss") == [(1, 1.0), (3, 3.0)]
    (path,) = [attributes["d"] for tag, attributes in page.tags if tag == "path"]
    assert (path or "").count("M") == 2  # a gap where the value was not finite
    assert "No checkpoints" in page.text["checkpoints"]


def test_only_a_few_samples_are_read(tmp_path: Path) -> None:
    rows = [{"sample_id": index, "prompt": f"prompt-{index}"} for index in range(100)]
    write_rows(tmp_path, "samples/episode-000001.jsonl", *rows)
    write_rows(tmp_path, "metrics.jsonl", {"episode": 1})
    assert len(RunData(tmp_path).samples["episode-000001"]) == 6
    assert "prompt-5" in Page(write_report(tmp_path)).text["samples"]


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    rows = [{"episode": e, "a/loss": math.sin(e / 500), "time/train_seconds": 1.0} for e in range(1, 20_001)]
    rows[7000]["a/loss"] = 50.0
    write_rows(tmp_path, "metrics.jsonl", *rows)
    path = write_report(tmp_path)
    assert path.stat().st_size < 100_000
    page = Page(path)
    points = points_of(page, "a/loss")
    assert (7001, 50.0) in points  # a peak is not lost
    assert points[-1][0] == 20_000
    assert "mean of 167 episodes" in page.text["phases"]
    assert "5 h 33 min" in page.text[""]


def test_thinning_by_hand() -> None:
    points = [(float(index), value) for index, value in enumerate([3, 1, 2, 9, 4, 5, 6, 7])]
    assert thinned(points, 8) == points
    # parts of four: lowest and highest of each in their order, and the last point
    assert thinned(points, 4) == [(1, 1), (3, 9), (4, 4), (7, 7)]
    assert len(thinned([(float(i), math.nan) for i in range(1000)], 10)) <= 11


def test_a_line_by_hand() -> None:
    """Two points span the frame: left to right 46 to 350, and 6 % of the range as padding at both ends of 10 to 148."""
    chart = line_chart({"a": [(1, 0.0), (3, 1.0)]})
    low, high = 148 - 138 * 0.06 / 1.12, 10 + 138 * 0.06 / 1.12
    assert f'd="M46.0 {low:.1f}L350.0 {high:.1f}"' in chart


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e-300, 2e-300], [1e300, -1e300], [5.0, math.nan], [-3.0] * 5])
def test_odd_ranges_have_finite_coordinates(values: list[float]) -> None:
    chart = line_chart({"a": [(index + 1, value) for index, value in enumerate(values)]})
    assert chart.startswith("<svg")
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', chart.replace("data-points", ""))


def test_nothing_finite_is_no_chart() -> None:
    assert line_chart({"a": [(1, math.nan)]}) == ""
