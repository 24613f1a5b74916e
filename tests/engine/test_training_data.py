"""Which samples reach a trainer, how often, in which pieces, and what a step is told about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import EVENTS

import chatlearn


class Identified(toys.Policy):
    """Puts its samples' ids into the batch, so that a trainer can tell whether rows and ids belong together."""

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        return {**super().forward_step(data, iteration), "made_as": list(self.batch.sample_ids)}


def _engine() -> chatlearn.Engine:
    class Counting(toys.Learner):
        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            EVENTS.append(("trained", [part["made_as"] for part in data], train_info, self.batch.sample_ids))

    policy, reward, learner = Identified("policy"), toys.Reward("reward"), Counting("learner")

    def env_flow(batch: Any) -> Any:
        return reward.forward_step(policy.forward_step(batch))

    environment, trainer = chatlearn.Environment(env_flow), chatlearn.Trainer(lambda batch: learner.train_step(batch))
    return chatlearn.Engine(environment, trainer).set_dataset(range(50))


def _config(folder: Path, policy_batch: int, reward_batch: int, **runtime: Any) -> dict[str, Any]:
    config = toys.settings(folder, **runtime)
    sizes = {"policy": {"generation_batch_size": policy_batch}, "reward": {"generation_batch_size": reward_batch}}
    return {**config, "models": {**sizes, "learner": {}}}


@pytest.mark.parametrize("samples", [200, 203, 5])
@pytest.mark.parametrize("batches", [(16, 16), (7, 7), (16, 7), (7, 16)])
def test_every_sample_is_trained_once_per_epoch(samples: int, batches: tuple[int, int], tmp_path: Path) -> None:
    """The issue's sizes: micro-batches of 8, global batches of 64, two training epochs, ends that do not divide."""
    runtime = {"train_micro_batch_size": 8, "train_global_batch_size": 64, "num_training_epoch": 2}
    chatlearn.init(_config(tmp_path, *batches, sample_per_episode=samples, **runtime))
    _engine().learn()
    for episode in range(2):
        for epoch in range(2):
            steps = [e for e in toys.events("trained") if (e[2]["episode"], e[2]["epoch"]) == (episode, epoch)]
            counts = Counter(sample for step in steps for part in step[1] for sample in part)
            assert counts == Counter(range(episode * samples, (episode + 1) * samples))
            sizes = [sum(map(len, step[1])) for step in steps]
            assert sizes == [64] * (samples // 64) + ([samples % 64] if samples % 64 else [])
            for step in steps:
                parts = [len(part) for part in step[1]]
                assert all(size == 8 for size in parts[:-1])
                assert 1 <= parts[-1] <= 8


@settings(deadline=None, max_examples=15)
@given(
    samples=st.integers(1, 40),
    batches=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    micro=st.integers(1, 5),
    factor=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_every_sample_is_trained_once_per_epoch_for_any_sizes(
    samples: int,
    batches: tuple[int, int],
    micro: int,
    factor: int,
    epochs: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    EVENTS.clear()
    runtime = {"train_micro_batch_size": micro, "train_global_batch_size": micro * factor, "log_samples": 0}
    folder = tmp_path_factory.mktemp("run")
    chatlearn.init(
        _config(folder, *batches, num_episode=1, sample_per_episode=samples, num_training_epoch=epochs, **runtime)
    )
    _engine().learn()
    trained = Counter(i for e in toys.events("trained") for part in e[1] for i in part)
    assert trained == Counter(dict.fromkeys(range(samples), epochs))


def test_train_info(tmp_path: Path) -> None:
    chatlearn.init(
        toys.settings(
            tmp_path,
            sample_per_episode=10,
            train_micro_batch_size=2,
            train_global_batch_size=4,
            num_training_epoch=2,
        )
    )
    _engine().learn()
    steps = toys.events("trained")
    info = [step[2] for step in steps]
    assert all(set(i) == {"iteration", "episode", "epoch", "sample_ids", "group_ids"} for i in info)
    # 10 samples in batches of 4 are 3 global batches, 2 epochs an episode, 2 episodes
    assert [i["iteration"] for i in info] == list(range(12))
    assert [i["episode"] for i in info] == [0] * 6 + [1] * 6
    assert [i["epoch"] for i in info] == [0, 0, 0, 1, 1, 1] * 2
    assert [[len(ids) for ids in i["sample_ids"]] for i in info] == [[2, 2], [2, 2], [2]] * 4
    for step in steps:
        assert step[2]["sample_ids"] == step[1]  # the ids are those of the rows, in their order
        assert step[2]["group_ids"] == step[1]  # one sample per prompt: each is a group of its own
        assert list(step[3]) == [i for ids in step[1] for i in ids]
    assert info[0]["sample_ids"] == [[0, 1], [2, 3]]  # the first epoch keeps the order of arrival


def test_rows_stay_with_their_ids_through_unequal_batches(tmp_path: Path) -> None:
    """Both modules see the same prompt under one sample id, whatever pieces they get."""

    class Pairs(toys.Reward):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            EVENTS.append(("pairs", data["made_as"], list(self.batch.sample_ids)))
            return super().forward_step(data, iteration)

    policy, reward = Identified("policy"), Pairs("reward")
    environment = chatlearn.Environment(lambda batch: reward.forward_step(policy.forward_step(batch)))
    config = _config(tmp_path, 16, 7, sample_per_episode=30)
    chatlearn.init(config)
    chatlearn.Engine(environment).set_dataset(range(5)).learn()
    assert toys.events("pairs")
    for _, made_as, ids in toys.events("pairs"):
        assert made_as == ids


@pytest.mark.parametrize("replicas", [1, 3])
def test_iterations_count_over_the_whole_run_not_per_replica(replicas: int, tmp_path: Path) -> None:
    """20 samples are 2 batches of the policy (16, 4), and 4 of the reward (7, 7, 2 and 4)."""
    config = _config(tmp_path, 16, 7, sample_per_episode=20, num_episode=3)
    for name in ("policy", "reward"):
        config["models"][name]["num_replica"] = replicas
    chatlearn.init(config)
    _engine().learn()
    policy, reward = toys.events("policy.forward_step"), toys.events("reward.forward_step")
    assert [e[1] for e in policy] == list(range(6))
    assert [len(e[3]) for e in policy] == [16, 4] * 3
    assert [e[1] for e in reward] == list(range(12))
    assert [len(e[3]) for e in reward] == [7, 7, 2, 4] * 3
    assert [e[2] for e in reward] == [i % replicas for i in range(12)]  # batches go round the replicas


def test_other_steps_of_a_training_flow_run_per_micro_batch(tmp_path: Path) -> None:
    class Scorer(toys.Toy):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            EVENTS.append(("scored", list(self.batch.sample_ids)))
            return {"score": [10 * i for i in self.batch.sample_ids]}

    class Reader(toys.Toy):
        def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
            EVENTS.append(("read", [part["score"] for part in data]))

    scorer, reader = Scorer("scorer"), Reader("reader")

    def trainer_flow(batch: Any) -> None:
        reader.train_step(scorer.forward_step(batch))

    chatlearn.init(toys.settings(tmp_path, num_episode=1, sample_per_episode=6))
    chatlearn.Engine(None, chatlearn.Trainer(trainer_flow)).set_dataset(range(6)).learn()
    assert EVENTS == [("scored", [0, 1, 2, 3]), ("scored", [4, 5]), ("read", [[0, 10, 20, 30], [40, 50]])]


def test_prompts_repeat_in_reshuffled_epochs(tmp_path: Path) -> None:
    """Twelve samples over five prompts: two whole passes and two more; each pass holds every prompt once."""

    class Prompts(toys.Policy):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            EVENTS.extend(("prompt", prompt) for prompt in data["prompt"])
            return super().forward_step(data, iteration)

    policy = Prompts("policy")
    chatlearn.init(toys.settings(tmp_path, num_episode=2, sample_per_episode=6))
    chatlearn.Engine(chatlearn.Environment(lambda b: policy.forward_step(b))).set_dataset([10, 11, 12, 13, 14]).learn()
    seen = [event[1] for event in toys.events("prompt")]
    assert len(seen) == 12
    assert sorted(seen[:5]) == sorted(seen[5:10]) == [10, 11, 12, 13, 14]
    assert seen[:5] != seen[5:10]


def test_is_eval_is_passed_where_a_signature_has_it(tmp_path: Path) -> None:
    class Asking(toys.Toy):
        def forward_step(self, data: dict[str, Any], is_eval: bool = False) -> dict[str, Any]:
            EVENTS.append(("asked", is_eval))
            return data

        def build_dataset(self, prompts: Any, is_eval: bool = False) -> Any:
            EVENTS.append(("built", list(prompts), is_eval))
            return [{"prompt": p} for p in prompts]

    module = Asking("asking")

    def flow(batch: Any) -> Any:
        return module.forward_step(batch)

    chatlearn.init(toys.settings(tmp_path, num_episode=1, sample_per_episode=2, eval_episode_interval=1))
    evaluator = chatlearn.Evaluator(flow).set_dataset([7])
    chatlearn.Engine(chatlearn.Environment(flow), None, evaluator).set_dataset([1, 2]).learn()
    assert EVENTS == [("built", [1, 2], False), ("asked", False), ("built", [7], True), ("asked", True)]
