"""Which samples an episode's batches are made of: several per prompt, and sorted by length."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import chatlearn
from chatlearn import BaseModule, ConfigError, DataError, Engine, Environment, Trainer

PROMPTS = ["a" * length for length in (3, 9, 1, 7, 5, 2, 8, 4, 6, 10)]


class Policy(BaseModule):
    """Writes down the batches that it gets."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        BATCHES.append((list(data["prompt"]), list(self.batch.sample_ids), list(self.batch.group_ids)))
        return data


class Learner(BaseModule):
    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        TRAINED.append([prompt for part in data for prompt in part["prompt"]])
        GROUPS.append([group for part in train_info["group_ids"] for group in part])


BATCHES: list[tuple[list[str], list[int], list[int]]] = []
TRAINED: list[list[str]] = []
GROUPS: list[list[int]] = []


@pytest.fixture(autouse=True)
def _empty() -> None:
    for record in (BATCHES, TRAINED, GROUPS):
        record.clear()


def learn(folder: Path, prompts: Any = PROMPTS, models: dict[str, Any] | None = None, **runtime: Any) -> None:
    base = {
        "num_episode": 2,
        "sample_per_episode": 12,
        "generation_batch_size": 4,
        "train_micro_batch_size": 2,
        "train_global_batch_size": 6,
        "output_dir": str(folder),
    }
    chatlearn.init({"runtime": {**base, **runtime}, "models": models or {}})
    policy, learner = Policy("policy"), Learner("learner")
    environment = Environment(lambda batch: policy.forward_step(batch))
    Engine(environment, Trainer(lambda batch: learner.train_step(batch))).set_dataset(prompts).learn()


def test_several_samples_of_each_prompt_stand_one_after_another(tmp_path: Path) -> None:
    learn(tmp_path, num_inference_per_prompt=2, num_training_epoch=2, data_shuffle=False)
    assert [prompts for prompts, _, _ in BATCHES] == [
        [prompt for prompt in PROMPTS[start : start + 2] for _ in range(2)] for start in (0, 2, 4, 6, 8, 0)
    ]
    assert [ids for _, ids, _ in BATCHES] == [list(range(start, start + 4)) for start in range(0, 24, 4)]
    assert [groups for _, _, groups in BATCHES] == [[g, g, g + 1, g + 1] for g in range(0, 12, 2)]


@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_no_global_batch_splits_a_prompts_samples(mode: str, tmp_path: Path) -> None:
    sizes = {"generation_batch_size": 9, "train_global_batch_size": 6, "sample_per_episode": 15}
    learn(tmp_path, num_inference_per_prompt=3, num_training_epoch=3, training_shuffle_mode=mode, **sizes)
    assert [len(groups) for groups in GROUPS] == [6, 6, 3] * 6
    assert all(set(Counter(groups).values()) == {3} for groups in GROUPS)
    for start in range(0, 18, 3):
        assert Counter(g for groups in GROUPS[start : start + 3] for g in groups) == Counter(
            {group + 5 * (start // 9): 3 for group in range(5)}
        )


def test_sizes_that_would_split_a_group_are_named_all_at_once(tmp_path: Path) -> None:
    models = {"policy": {"generation_batch_size": 6}, "learner": {}}
    with pytest.raises(ConfigError) as caught:
        learn(tmp_path, models=models, num_inference_per_prompt=4, consumed_samples=2)
    text = str(caught.value)
    assert "3 problems" in text
    for key, fix in (
        ("runtime.consumed_samples", 4),
        ("models.policy.generation_batch_size", 8),
        ("runtime.train_global_batch_size", 8),
    ):
        assert key in text
        assert f"set it to {fix}, or another multiple of 4" in text
    assert "runtime.generation_batch_size" not in text
    assert BATCHES == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("models", "runtime"),
    [
        (None, {"data_rerank": True}),
        ({"policy": {"batch_generation": {"ranking": True}}, "learner": {}}, {}),
    ],
)
def test_an_episode_is_sorted_by_length(models: Any, runtime: dict[str, Any], tmp_path: Path) -> None:
    learn(tmp_path, models=models, sample_per_episode=10, **runtime)
    for start in (0, 3):
        lengths = [len(prompt) for prompts, _, _ in BATCHES[start : start + 3] for prompt in prompts]
        assert lengths == list(range(10, 0, -1))
    ids = [i for _, ids, _ in BATCHES for i in ids]
    assert sorted(ids[:10]) == list(range(10))
    assert sorted(ids[10:]) == list(range(10, 20))
    assert [len(prompt) for batch in TRAINED[:2] for prompt in batch] == list(range(10, 0, -1))


def test_sorting_keeps_the_samples_of_a_prompt_together(tmp_path: Path) -> None:
    learn(tmp_path, data_rerank=True, num_inference_per_prompt=2, num_episode=1)
    prompts = [prompt for batch, _, _ in BATCHES for prompt in batch]
    assert prompts[::2] == prompts[1::2]
    assert [len(prompt) for prompt in prompts] == sorted((len(prompt) for prompt in prompts), reverse=True)
    ids = [i for _, batch, _ in BATCHES for i in batch]
    assert ids[1::2] == [i + 1 for i in ids[::2]]


def test_a_data_set_that_feeds_the_trainer_is_sorted_too(tmp_path: Path) -> None:
    runtime = {"num_episode": 1, "sample_per_episode": 10, "train_global_batch_size": 4, "train_micro_batch_size": 4}
    chatlearn.init({"runtime": {**runtime, "data_rerank": True, "output_dir": str(tmp_path)}})
    learner = Learner("learner")
    Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset(PROMPTS).learn()
    assert [[len(prompt) for prompt in batch] for batch in TRAINED] == [[10, 9, 8, 7], [6, 5, 4, 3], [2, 1]]


def test_samples_without_a_length_can_not_be_sorted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"policy\[0\].*can't be sorted.*has no length"):
        learn(tmp_path, prompts=[1, 2, 3], data_rerank=True)


def test_sorting_and_groups_are_resumed_where_they_were(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_rerank": True, "num_inference_per_prompt": 2, "exp_name": "run"}
    learn(tmp_path / "whole", num_episode=4, **settings)
    whole = list(BATCHES)
    BATCHES.clear()
    learn(tmp_path / "parts", num_episode=2, save_episode_interval=1, **settings)
    checkpoint = tmp_path / "parts" / "run" / "checkpoints" / "episode-000002"
    learn(tmp_path / "parts", num_episode=4, resume=str(checkpoint), **settings)
    assert whole == BATCHES


def test_an_environment_takes_several_data_sets_as_an_engine_does(tmp_path: Path) -> None:
    chatlearn.init({"runtime": {"num_episode": 1, "sample_per_episode": 12, "output_dir": str(tmp_path)}})
    policy = Policy("policy")
    environment = Environment(lambda batch: policy.forward_step(batch))
    environment.set_multiple_datasets({"short": ["a", "b"], "long": ["aaa", "bbb"]}, [2, 1])
    Engine(environment).learn()
    lengths = Counter(len(prompt) for prompts, _, _ in BATCHES for prompt in prompts)
    assert lengths == {1: 8, 3: 4}
