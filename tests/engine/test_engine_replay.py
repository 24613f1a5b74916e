"""Training on the experience of several episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import chatlearn
from chatlearn import BaseModule, DataError, Engine, EngineError, Environment, Trainer
from chatlearn.data.padding import Padding

TRAINED: list[tuple[int, list[int], list[str], list[float]]] = []
"""(episode, sample ids, texts, numbers) of each train step."""


class Policy(BaseModule):
    """Answers with lists, tensors of unequal width, and nested values."""

    padding: ClassVar[Mapping[str, Padding]] = {"tokens": Padding(-1)}

    def setup(self) -> None:
        self.model = torch.nn.Linear(1, 1)

    def forward_step(self, data: dict[str, Any], iteration: int) -> dict[str, Any]:
        ids = self.batch.sample_ids
        return {
            "text": [f"{prompt}!" for prompt in data["prompt"]],
            "number": torch.tensor(ids, dtype=torch.float32),
            "tokens": torch.full((len(ids), iteration + 1), iteration),
            "nested": {"twice": torch.tensor(ids) * 2},
        }


class Learner(BaseModule):
    def setup(self) -> None:
        self.model = torch.nn.Linear(1, 1)

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        ids = [i for part in train_info["sample_ids"] for i in part]
        texts = [text for part in data for text in part["text"]]
        numbers = torch.cat([part["number"] for part in data])
        assert torch.equal(torch.cat([part["nested"]["twice"] for part in data]), numbers.long() * 2)
        for part in data:
            for row, number in zip(part["tokens"], part["number"], strict=True):
                batch = int(number) // 2  # two samples a generation batch
                assert row.tolist() == [batch] * (batch + 1) + [-1] * (len(row) - batch - 1)
        TRAINED.append((train_info["episode"], ids, texts, numbers.tolist()))
        with torch.no_grad():
            self.model.weight += numbers.sum() / 7


@pytest.fixture(autouse=True)
def _empty() -> None:
    TRAINED.clear()


def build(folder: Path, isolate: bool = False, **runtime: Any) -> Engine:
    base = {
        "num_episode": 4,
        "sample_per_episode": 4,
        "generation_batch_size": 2,
        "train_micro_batch_size": 2,
        "train_global_batch_size": 4,
        "data_shuffle": False,
        "output_dir": str(folder),
        "exp_name": "run",
    }
    chatlearn.init({"runtime": {**base, **runtime}, "runtime_env": {"isolate": isolate}})
    policy, learner = Policy("policy"), Learner("learner")
    engine = Engine(
        Environment(lambda batch: policy.forward_step(batch)), Trainer(lambda batch: learner.train_step(batch))
    )
    return engine.set_dataset(list("abcdefghijklmnop")).set_parameter_sync(learner, policy)


def trained(episode: int) -> list[int]:
    return [i for number, ids, _, _ in TRAINED if number == episode for i in ids]


def everything(first: int, last: int) -> list[int]:
    """Ids of the samples of episodes."""
    return list(range(4 * first, 4 * last + 4))


@pytest.mark.parametrize(
    ("keep", "offset", "first"),
    [
        (1, 0, [0, 1, 2, 3]),
        (0, 0, [0, 1, 2, 3]),
        (2, 0, [0, 0, 1, 2]),
        (3, 0, [0, 0, 0, 1]),
        (-1, 0, [0, 0, 0, 0]),
        (-1, 2, [0, 1, 2, 2]),
        (2, 1, [0, 1, 1, 2]),
    ],
)
def test_the_episodes_that_are_kept_are_trained_on(keep: int, offset: int, first: list[int], tmp_path: Path) -> None:
    build(tmp_path, max_replay_episode=keep, replay_episode_offset=offset).learn()
    assert [trained(episode) for episode in range(4)] == [everything(start, end) for end, start in enumerate(first)]
    for _, ids, texts, numbers in TRAINED:
        assert texts == [f"{'abcdefghijklmnop'[i]}!" for i in ids]
        assert numbers == [float(i) for i in ids]


@pytest.mark.parametrize("setter", ["set_replay_sample_fn", "set_relay_sample_fn"])
def test_a_function_chooses_among_them(setter: str, tmp_path: Path) -> None:
    def newest_and_one_old(episodes: list[Any]) -> list[Any]:
        return [*episodes[-1].samples[:3], episodes[0].samples[0] | {"text": "changed"}]

    engine = build(tmp_path, max_replay_episode=-1)
    getattr(engine, setter)(newest_and_one_old).learn()
    assert [trained(episode) for episode in range(4)] == [[0, 1, 2, 0], [4, 5, 6, 0], [8, 9, 10, 0], [12, 13, 14, 0]]
    assert [texts[-1] for _, _, texts, _ in TRAINED] == ["changed"] * 4


def test_a_function_may_thin_out_the_current_episode_alone(tmp_path: Path) -> None:
    build(tmp_path, num_episode=2).set_replay_sample_fn(lambda episodes: episodes[0].samples[::2]).learn()
    assert [trained(episode) for episode in range(2)] == [[0, 2], [4, 6]]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["replay/num_episodes"], row["replay/num_samples"], row["num_samples"]) for row in rows] == [
        (1, 2, 4),
        (1, 2, 4),
    ]


def test_a_function_that_draws_draws_the_same_again(tmp_path: Path) -> None:
    import random

    def draw(episodes: list[Any]) -> list[Any]:
        return random.choices([sample for episode in episodes for sample in episode.samples], k=6)

    for name in ("one", "two"):
        build(tmp_path / name, max_replay_episode=-1).set_replay_sample_fn(draw).learn()
    assert TRAINED[: len(TRAINED) // 2] == TRAINED[len(TRAINED) // 2 :]
    assert len({str(ids) for _, ids, _, _ in TRAINED}) > 4


@pytest.mark.parametrize("isolate", [False, True])
def test_a_resumed_run_replays_what_it_would_have(isolate: bool, tmp_path: Path) -> None:
    def draw(episodes: list[Any]) -> list[Any]:
        return [sample for episode in episodes for sample in episode.samples[1:]]

    settings: dict[str, Any] = {"max_replay_episode": 3, "num_training_epoch": 2, "save_episode_interval": 1}
    engine = build(tmp_path / "whole", isolate, **settings).set_replay_sample_fn(draw)
    engine.learn()
    whole = list(TRAINED)
    TRAINED.clear()
    build(tmp_path / "parts", isolate, **{**settings, "num_episode": 2}).set_replay_sample_fn(draw).learn()
    checkpoint = tmp_path / "parts" / "run" / "checkpoints" / "episode-000002"
    build(tmp_path / "parts", isolate, resume=str(checkpoint), **settings).set_replay_sample_fn(draw).learn()
    assert whole == TRAINED


def test_with_the_dynamic_loader_training_waits_and_the_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, max_replay_episode=2, stream_data_loader_type="dynamic").learn()
    assert trained(3) == everything(2, 3)
    assert "experience is replayed, so training waits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda episodes: [], "returns an empty list"),
        (lambda episodes: episodes, "item 0 is an episode"),
        (lambda episodes: [dict(episodes[0].samples[0])], "item 0 is a plain dict"),
        (lambda episodes: 1 // 0, "raises ZeroDivisionError"),
    ],
)
def test_what_a_function_gives_is_checked(function: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        build(tmp_path).set_replay_sample_fn(function).learn()
    assert f"{Path(__file__).name}:" in str(caught.value)


def test_what_can_not_be_called_is_no_function(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="set_replay_sample_fn takes a function"):
        build(tmp_path).set_replay_sample_fn([1])  # type: ignore[arg-type]
