"""Groups, distributions and tokens in a page, of run folders that are written by hand."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from report_page import EVIL, Page, points_of, write_rows

import chatlearn
from chatlearn import Engine, Environment
from chatlearn.algorithms.advantages import grpo
from chatlearn.report import write_report
from chatlearn.report.charts import band_chart, quantile
from chatlearn.report.run import RunData


def _sample(number: int, **more: Any) -> dict[str, Any]:
    return {"sample_id": number, "group_id": number // 4, "prompt": f"question {number // 4}", **more}


def _page(folder: Path, **files: list[Any]) -> Page:
    for name, rows in files.items():
        write_rows(folder, f"samples/{name.replace('_', '-')}.jsonl", *rows)
    write_rows(folder, "metrics.jsonl", {"episode": 1})
    return Page(write_report(folder))


def _cards(page: Page) -> list[str]:
    return [attributes["class"] or "" for attributes in page.find("article")]


def _words(page: Page, section: str) -> str:
    return " ".join(page.text[section].split())


GROUP = [
    _sample(0, response="a", rewards=0.0, advantages=-1.5, length=3, finished=True, reward_components={"x": 0, "y": 1}),
    _sample(1, response="b", rewards=1.0, advantages=0.5, length=4, finished=True, reward_components={"x": 1, "y": 2}),
    _sample(2, response="c", rewards=2.0, advantages=1.0, length=5, finished=False, reward_components={"x": 2, "y": 3}),
    _sample(3, response="d", rewards=1.0, advantages=0.0, length=6, finished=True, reward_components={"x": 3, "y": 4}),
]


def test_a_group_stands_side_by_side_from_the_best_to_the_worst(tmp_path: Path) -> None:
    """Shades by thirds of the largest distance from 0, which is 1.5; the standard deviation of 0, 1, 2, 1 is 0.8165."""
    page = _page(tmp_path, episode_000007=GROUP)
    assert _cards(page) == ["card better2", "card better1", "card ", "card worse3"]
    text = _words(page, "groups")
    assert "group 0: 4 responses, reward 1 ± 0.8165" in text
    assert "prompt question 0" in text
    assert "sample 2 cut off reward 2 advantage +1 tokens 5 x 2 y 3 c" in text
    assert "sample 3 reward 1 advantage 0 tokens 6 x 3 y 4 d" in text
    assert "sample 0 reward 0 advantage -1.5 tokens 3 x 0 y 1 a" in text
    assert text.count("cut off") == 1
    assert "episode-000007" in text


def test_advantages_of_tokens_are_shown_by_their_mean(tmp_path: Path) -> None:
    rows = [_sample(0, advantages=[1.0, 2.0, None]), _sample(1, advantages=[-0.1, -0.2])]
    text = _words(_page(tmp_path, episode_000001=rows), "groups")
    assert "mean advantage +1.5" in text
    assert "mean advantage -0.15" in text


def test_without_advantages_the_distance_from_the_mean_reward_gives_the_colour(tmp_path: Path) -> None:
    page = _page(tmp_path, episode_000001=[_sample(n, reward=r) for n, r in enumerate([0.0, 0.0, 0.0, 1.0])])
    assert _cards(page) == ["card better3", "card worse1", "card worse1", "card worse1"]
    assert "reward − mean +0.75" in _words(page, "groups")


def test_a_group_of_equal_rewards_is_said_to_have_no_signal(tmp_path: Path) -> None:
    page = _page(tmp_path, episode_000001=[_sample(n, rewards=1.0, advantages=0.0) for n in range(4)])
    assert _cards(page) == ["card "] * 4
    assert "4 responses, all rewards 1: no signal" in _words(page, "groups")


def test_advantages_that_are_rounding_have_no_colour(tmp_path: Path) -> None:
    rows = [_sample(n, advantages=value) for n, value in enumerate([1.0, -1.0, 5e-8, -5e-8])]
    assert sorted(_cards(_page(tmp_path, episode_000001=rows))) == ["card ", "card ", "card better3", "card worse3"]


def test_the_first_and_the_last_logged_episode_are_shown(tmp_path: Path) -> None:
    page = _page(tmp_path, episode_000001=GROUP, episode_000010=GROUP, episode_000100=GROUP)
    text = page.text["groups"]
    assert "episode-000001" in text
    assert "episode-000100" in text
    assert "episode-000010" not in text


def test_samples_of_different_prompts_are_no_groups(tmp_path: Path) -> None:
    page = _page(tmp_path, episode_000001=[{"sample_id": n, "group_id": n, "rewards": 1.0} for n in range(4)])
    assert "No two logged samples belong to one group" in page.text["groups"]
    assert _cards(page) == []


def test_rows_of_every_odd_kind_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    """Rows of an older version or a user's own: no numbers where numbers are, and the other way round."""
    odd = [
        {"sample_id": 1, "group_id": "g"},
        {"sample_id": 2, "group_id": "g", "rewards": None, "advantages": [], "reward_components": 3, "tokens": "many"},
        {"sample_id": 3, "group_id": "g", "rewards": 10**400, "length": "long", "reward_components": {"x": None}},
        {"sample_id": 4, "group_id": "g", "rewards": True, "tokens": [1], "logprobs": [0], "old_logprobs": None},
        {"sample_id": 5, "group_id": "g", "rewards": [1, 2], "tokens": ["a"], "logprobs": [0], "old_logprobs": [0]},
        {"sample_id": 6, "group_id": [1], "prompt": 5, "response": {"a": 1}, "finished": "no", "advantages": {}},
    ]
    page = _page(tmp_path, episode_000001=odd)
    assert len(_cards(page)) == 5
    assert "group g: 5 responses" in page.text["groups"]
    assert "No logged sample has the log-probabilities" in page.text["tokens"]


def test_distributions_are_medians_of_the_logged_samples(tmp_path: Path) -> None:
    later = [{**row, "rewards": value} for row, value in zip(GROUP, [5.0, 1.0, 2.0, None], strict=True)]
    page = _page(tmp_path, episode_000001=GROUP, episode_000003=later)
    for label, expected in {
        "median reward": [(1, statistics.median([0, 1, 2, 1])), (3, statistics.median([5, 1, 2]))],
        "median response tokens": [(1, 4.5), (3, 4.5)],
    }.items():
        (line,) = page.find("g", **{"data-label": label})
        shown = json.loads(line["data-points"] or "")
        assert [(episode, float(words.split()[0])) for _, _, episode, words in shown] == expected
    (line,) = page.find("g", **{"data-label": "median reward"})
    assert json.loads(line["data-points"] or "")[1][3] == "2 (1.5 to 3.5; 1 to 5)"
    assert points_of(page, "x") == [(1, 1.5), (3, 1.5)]
    assert points_of(page, "y") == [(1, 2.5), (3, 2.5)]
    assert "From the logged samples only (4 an episode" in _words(page, "distributions")


def test_the_length_of_older_rows_is_the_number_of_their_tokens(tmp_path: Path) -> None:
    page = _page(tmp_path, episode_000001=[{"sample_id": 0, "tokens": [1, 2, 3], "rewards": 1.0}])
    (line,) = page.find("g", **{"data-label": "median response tokens"})
    assert json.loads(line["data-points"] or "")[0][3] == "3 (3 to 3; 3 to 3)"


def test_a_run_without_rewards_has_no_distributions(tmp_path: Path) -> None:
    page = _page(tmp_path, episode_000001=[{"sample_id": 0, "prompt": "a"}], notes=[{"sample_id": 1, "rewards": 1.0}])
    assert "No rewards and no lengths in samples/" in page.text["distributions"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [5.0, -1.0, 2.0, 2.0, 8.0]])
def test_quantiles_are_those_of_numpy(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)))


def test_bands_by_hand() -> None:
    """Two episodes at the ends of the frame, 46 and 350; values 0 to 4 between 148 and 10 with 6 % padding."""
    chart = band_chart("reward", [(1, [0.0, 1.0, 2.0, 3.0, 4.0]), (2, [2.0])])

    def y(value: float) -> float:
        return round(148 - 138 * (value + 0.24) / 4.48, 1)

    assert f'points="46.0,{y(4)} 350.0,{y(2)} 350.0,{y(2)} 46.0,{y(0)}"' in chart
    assert f'points="46.0,{y(3)} 350.0,{y(2)} 350.0,{y(2)} 46.0,{y(1)}"' in chart
    assert f'd="M46.0 {y(2)}L350.0 {y(2)}"' in chart
    assert band_chart("reward", []) == ""


def test_tokens_are_shaded_by_the_difference_of_their_logprobs(tmp_path: Path) -> None:
    """Differences 0, -0.02, 0.1, 0.5 and 1; k3 of each is exp(d) - 1 - d."""
    differences = [0.0, -0.02, 0.1, 0.5, 1.0]
    sampler = [-1.0] * 5
    trainer = [-1.0 + difference for difference in differences]
    row = {"sample_id": 4, "tokens": [0, 1, 2, 3, 9], "logprobs": sampler, "old_logprobs": trainer}
    page = _page(tmp_path, episode_000001=[row])
    shades = [(span["class"] or "").removeprefix("token").strip() for span in page.find("span") if "title" in span]
    assert shades == ["", "differs1", "differs2", "differs3", "differs4"]
    mean = sum(math.exp(d) - 1 - d for d in differences) / 5
    text = _words(page, "tokens")
    assert f"sample 4: mean k3 {mean:.4g}, largest difference 1" in text
    assert "⟨0⟩ ⟨1⟩ ⟨2⟩ ⟨3⟩ ⟨9⟩" in text
    assert "Tokens stand as numbers" in text
    assert "5 ⟨9⟩ -1 0 1" in text  # the table of those that differ most


def test_logprobs_that_are_not_finite_come_first(tmp_path: Path) -> None:
    good = {"sample_id": 1, "tokens": [1], "logprobs": [-1.0], "old_logprobs": [-9.0]}
    bad = {"sample_id": 2, "tokens": [1, 2], "logprobs": [None, -1.0], "old_logprobs": [-1.0, -1.0]}
    text = _words(_page(tmp_path, episode_000001=[good, bad]), "tokens")
    assert "sample 2: mean k3 0, largest difference inf" in text
    assert text.index("sample 2") < text.index("sample 1:")


BYTES = {"Hello": 0, "Ġworld": 1, "Ċ": 2, "Ã": 3, "©": 4}
WORDS = {"▁der": 0, "Tag": 1}


@pytest.mark.parametrize(
    ("tokenizer", "ids", "texts"),
    [
        ({"model": {"vocab": {"a": 0, "b": 1}}, "decoder": {"type": "Fuse"}}, [1, 0], "b a"),
        ({"model": {"vocab": BYTES}, "decoder": {"type": "ByteLevel"}}, [0, 1, 3], "Hello world \\xc3"),
        (
            {"model": {"vocab": BYTES}, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}},
            [4, 0],
            "\\xa9 Hello",
        ),
        ({"model": {"vocab": WORDS}, "decoder": {"type": "Metaspace"}}, [0, 1], "der Tag"),
        ({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, [1, 0], "b a"),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 5, "content": "</s>"}]}, [0, 5, 6], "a </s> ⟨6⟩"),
        ({"model": 3, "added_tokens": "none"}, [0], "⟨0⟩"),
    ],
)
def test_texts_of_tokens_come_from_the_exported_tokenizer(
    tokenizer: Any, ids: list[int], texts: str, tmp_path: Path
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "tokenizer.json").write_text(json.dumps(tokenizer))
    zeros = [0.0] * len(ids)
    row = {"sample_id": 0, "tokens": ids, "logprobs": zeros, "old_logprobs": zeros}
    text = _words(_page(tmp_path, episode_000001=[row]), "tokens")
    assert f"largest difference 0 {texts} token text" in text


def test_text_of_models_stays_text_in_groups_and_tokens(tmp_path: Path) -> None:
    evil: dict[str, Any] = {
        **dict.fromkeys(("prompt", "response", "answer"), EVIL),
        "group_id": EVIL,
        "rewards": 1.0,
        "reward_components": {EVIL: 1.0},
        "tokens": [0, 1],
        "logprobs": [0.0, 0.0],
        "old_logprobs": [0.0, 1.0],
    }
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {EVIL: 0, "x": 1}}}))
    page = _page(tmp_path, episode_000001=[{"sample_id": EVIL, **evil}, {"sample_id": 2, **evil}])
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.find("img") == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    for section in ("groups", "tokens", "distributions"):
        assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in page.text[section], section


def test_pages_stay_small_however_much_is_logged(tmp_path: Path) -> None:
    """Texts of 10,000 characters, responses of 4,000 tokens, groups of 64, 151 episodes."""
    long = "word " * 2000
    tokens = {"tokens": list(range(4000)), "logprobs": [-1.0] * 4000, "old_logprobs": [-1.1] * 4000}
    last = [
        {"sample_id": n, "group_id": n // 64, "prompt": long, "response": long, "rewards": n % 3, **tokens}
        for n in range(40)
    ]
    many = [{"sample_id": n, "group_id": n // 64, "prompt": long, "response": long, "rewards": n} for n in range(640)]
    files = {f"episode_{number:06d}": [{"sample_id": 0, "rewards": number}] for number in range(2, 151)}
    page = _page(tmp_path, episode_000001=many, episode_000200=last, **files)
    assert len(page.source) < 600_000
    data = RunData(tmp_path)
    episodes = [each.episode for each in data.logged]
    assert (len(episodes), episodes[0], episodes[-1]) == (100, 1, 200)
    assert len(data.first_and_last["episode-000001"]) == 512
    assert len(_cards(page)) == 4 * 16 + 16
    text = _words(page, "groups")
    assert "4 of 8 logged groups" in text
    assert "16 of 64 responses" in text
    assert "100 of 151 episodes" in _words(page, "distributions")
    assert "3700 more tokens" in _words(page, "tokens")


class Speller(chatlearn.BaseModule):
    """A policy over digits that draws three of them, and says one more than it thinks of their log-probability."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        count = len(data["prompt"])
        drawn = (self.uniforms(self.batch.sample_ids, 3) * 10).long()
        logprobs = torch.full((count, 3), -math.log(10))
        nothing = torch.zeros(count, 1)
        return {
            "prompt": [f"digits of {prompt}" for prompt in data["prompt"]],
            "response": ["".join(map(str, row)) for row in drawn.tolist()],
            "tokens": torch.cat([torch.full((count, 1), 99), drawn], 1),
            "response_mask": torch.cat([nothing, torch.ones(count, 3)], 1),
            "logprobs": torch.cat([nothing, logprobs], 1),
            "old_logprobs": torch.cat([nothing, logprobs + 1], 1),
        }


class Grader(chatlearn.BaseModule):
    """Rewards large digits, and gives advantages to groups."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        total = data["tokens"][:, 1:].sum(1).float()
        components = {"sum": total, "first": data["tokens"][:, 1].float()}
        rewards = components["sum"] + 0.5 * components["first"]
        groups = torch.tensor(self.batch.group_ids)
        advantages = grpo(rewards, groups).unsqueeze(1) * data["response_mask"]
        self.log("reward", rewards.mean())
        return {**data, "rewards": rewards, "reward_components": components, "advantages": advantages}


def test_a_run_that_samples_groups(tmp_path: Path) -> None:
    """From an engine to the page; rewards and advantages are worked out again from the logged text."""
    policy, reward = Speller("policy"), Grader("reward")
    with toys.quick_runs():
        chatlearn.init(
            toys.settings(tmp_path, num_inference_per_prompt=4, sample_per_episode=16, log_samples=8, sinks=["jsonl"])
        )
        Engine(Environment(lambda batch: reward.forward_step(policy.forward_step(batch)))).set_dataset(
            [1, 2, 3]
        ).learn()
    rows = [json.loads(line) for line in (tmp_path / "toy/samples/episode-000002.jsonl").read_text().splitlines()]
    assert [row["group_id"] for row in rows] == [4] * 4 + [5] * 4
    for group in (rows[:4], rows[4:]):
        rewards = [sum(map(int, row["response"])) + 0.5 * int(row["response"][0]) for row in group]
        mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
        for row, value in zip(group, rewards, strict=True):
            assert row["rewards"] == value
            assert row["reward_components"]["first"] == int(row["response"][0])
            assert row["tokens"] == [int(digit) for digit in row["response"]]
            assert row["length"] == 3
            assert row["advantages"] == pytest.approx((value - mean) / deviation, abs=1e-4)
    page = Page(write_report(tmp_path / "toy"))
    assert len(_cards(page)) == 16
    text = _words(page, "groups")
    for row in rows:
        assert f"sample {row['sample_id']} reward {row['rewards']:.4g} advantage {row['advantages']:+.4g}" in text
    assert f"mean k3 {math.e - 2:.4g}, largest difference 1" in _words(page, "tokens")
    expected = statistics.median(row["rewards"] for row in rows)
    (line,) = page.find("g", **{"data-label": "median reward"})
    assert json.loads(line["data-points"] or "")[1][3].startswith(f"{expected:.4g} (")


def test_reward_components_are_curves_of_their_metrics_where_there_are_some(tmp_path: Path) -> None:
    """A component may be called like a metric that a report knows."""
    names = ("m/reward", "m/reward/exact", "m/reward/finished", "eval/m/reward/exact", "m/reward_std/finished")
    write_rows(tmp_path, "samples/episode-000001.jsonl", *GROUP)
    write_rows(tmp_path, "metrics.jsonl", *({"episode": e} | dict.fromkeys(names, e / 10) for e in (1, 2, 3, 4)))
    page = Page(write_report(tmp_path))
    for name in names:
        assert points_of(page, name) == [(e, e / 10) for e in (1, 2, 3, 4)]
    text = _words(page, "curves")
    assert "reward components m/reward/exact m/reward/finished eval/m/reward/exact" in text
    assert "m/reward_std/finished" in page.text["metrics"]
    assert page.find("g", **{"data-label": "x"}) == []  # the mean of the logged samples, which are fewer
    assert page.find("ul", class_="alarms") == []
