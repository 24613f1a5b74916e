"""The engine of groups: what its flows look like, whole groups on the way, several rewards, a greedy baseline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys

import chatlearn
from chatlearn import BaseModule, GRPOEngine
from chatlearn.errors import EngineError
from chatlearn.modules.advantage_estimator import AdvantageEstimator


class Policy(BaseModule):
    """A response is a number; the greedy one is 0.5."""

    def setup(self):
        self.model = torch.nn.Linear(1, 1)

    def forward_step(self, data, greedy=False):
        ids = self.batch.sample_ids
        action = torch.full((len(ids),), 0.5) if greedy else self.uniforms(ids, 1)[:, 0]
        weight = torch.full((len(ids),), float(self.model.weight))
        return {"prompt": data["prompt"], "action": action, "weight": weight}

    @chatlearn.step
    def reference_step(self, data):
        return {"by": ["the policy itself"] * len(data["prompt"])}


class Reference(BaseModule):
    def forward_step(self, data):
        return {"by": ["a reference"] * len(data["prompt"])}


class Reward(BaseModule):
    """A multiple of the action; 0 in the silent group, if there is one."""

    def __init__(self, name: str, factor: float = 1.0, silent: int | None = None) -> None:
        super().__init__(name)
        self.factor, self.silent = factor, silent

    def forward_step(self, data):
        loud = torch.tensor([group != self.silent for group in self.batch.group_ids])
        return {"rewards": self.factor * data["action"] * loud}


def entry(values: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of a batch, nested columns too."""
    return {key: entry(value, row) if isinstance(value, dict) else value[row] for key, value in values.items()}


class Trainer(BaseModule):
    """Records a row for each sample that it trains on."""

    def setup(self):
        self.model = torch.nn.Linear(1, 1)

    def forward_step(self, data):
        return {"old_logprobs": torch.zeros(len(data["prompt"]), 1)}

    def train_step(self, data, train_info):
        with torch.no_grad():
            self.model.weight += 1
        for micro, groups in zip(data, train_info["group_ids"], strict=True):
            for row, group in enumerate(groups):
                toys.EVENTS.append(("row", group, entry(micro, row)))


def learn(folder: Any, engine: GRPOEngine, models: dict[str, Any] | None = None, **runtime: Any) -> dict[int, list]:
    """Rows by group, as the trainer saw them."""
    sizes = {"num_inference_per_prompt": 4, "num_episode": 1, "sample_per_episode": 16, **runtime}
    config = toys.settings(folder, **sizes)
    chatlearn.init({**config, "models": models} if models else config)
    engine.set_dataset(list(range(100, 150)))
    with toys.quick_runs():
        engine.learn()
    engine.stop()
    groups: dict[int, list] = {}
    for _, group, row in toys.events("row"):
        groups.setdefault(group, []).append(row)
    return groups


def advantages(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([row["advantages"] for row in rows])


def test_rewards_become_advantages_within_their_groups(tmp_path) -> None:
    groups = learn(tmp_path, GRPOEngine(Policy("policy"), Reference("reference"), Reward("reward"), Trainer("trainer")))
    assert len(groups) == 4
    for rows in groups.values():
        rewards = torch.stack([row["rewards"] for row in rows])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        torch.testing.assert_close(advantages(rows), expected, atol=1e-5, rtol=1e-4)
        assert len({row["prompt"] if isinstance(row["prompt"], int) else int(row["prompt"]) for row in rows}) == 1
        assert {row["by"] for row in rows} == {"a reference"}


def test_the_estimator_is_configured_like_any_module_and_needs_no_entry(tmp_path) -> None:
    entries: dict[str, Any] = {name: {} for name in ("policy", "reward", "trainer")}

    def engine() -> GRPOEngine:
        return GRPOEngine(Policy("policy"), None, Reward("reward"), Trainer("trainer"))

    def spread(groups: dict[int, list]) -> float:
        return float(torch.stack([advantages(rows).std() for rows in groups.values()]).mean())

    assert spread(learn(tmp_path, engine(), entries)) == pytest.approx(1, abs=1e-3)
    toys.EVENTS.clear()
    entries["advantages"] = {"args": {"estimator": "dr_grpo"}}
    assert spread(learn(tmp_path, engine(), entries)) < 0.6


def test_several_rewards_are_weighted(tmp_path) -> None:
    rewards = [Reward("rule"), Reward("judge", factor=10)]
    engine = GRPOEngine(Policy("policy"), None, rewards, Trainer("trainer"), reward_weights=[1, 0.5])
    for rows in learn(tmp_path, engine).values():
        for row in rows:
            assert float(row["rewards"]) == pytest.approx(6 * float(row["action"]), rel=1e-5)
            assert float(row["reward_components"]["judge"]) == pytest.approx(10 * float(row["action"]))


def test_several_rewards_are_normalised_before_the_sum_if_asked(tmp_path) -> None:
    rewards = [Reward("rule"), Reward("judge", factor=100)]
    estimator = AdvantageEstimator("advantages")
    engine = GRPOEngine(
        Policy("policy"), None, rewards, Trainer("trainer"), advantages=estimator, combine="normalize_then_sum"
    )
    for rows in learn(tmp_path, engine).values():
        actions = torch.stack([row["action"] for row in rows])
        scaled = (actions - actions.mean()) / actions.std()
        torch.testing.assert_close(torch.stack([row["rewards"] for row in rows]), 2 * scaled, atol=1e-3, rtol=1e-3)


def test_the_greedy_response_is_the_baseline_of_remax(tmp_path) -> None:
    engine = GRPOEngine(Policy("policy"), None, Reward("reward"), Trainer("trainer"), greedy_baseline=True)
    groups = learn(tmp_path, engine, num_inference_per_prompt=1)
    assert len(groups) == 16
    for rows in groups.values():
        assert float(rows[0]["advantages"]) == pytest.approx(float(rows[0]["action"]) - 0.5, abs=1e-6)


def test_the_policy_can_be_its_own_reference_and_the_trainer_compute_log_probabilities(tmp_path) -> None:
    policy = Policy("policy")
    engine = GRPOEngine(policy, policy, Reward("reward"), Trainer("trainer"), recompute_logprobs=True)
    for rows in learn(tmp_path, engine).values():
        assert {row["by"] for row in rows} == {"the policy itself"}
        assert all("old_logprobs" in row for row in rows)


@pytest.mark.parametrize("replicas", [1, 3])
def test_silent_groups_are_left_out_and_filled_up(tmp_path, replicas) -> None:
    models: dict[str, Any] = {"policy": {"num_replica": replicas}, "reward": {}, "trainer": {}}
    engine = GRPOEngine(Policy("policy"), None, Reward("reward", silent=1), Trainer("trainer"), drop_silent_groups=True)
    groups = learn(tmp_path, engine, models, max_refill_rounds=1)
    assert len(groups) == 4
    assert 1 not in groups
    assert all(len(rows) == 4 for rows in groups.values())


def test_the_trained_weights_go_to_the_policy(tmp_path) -> None:
    engine = GRPOEngine(Policy("policy"), None, Reward("reward"), Trainer("trainer"))
    groups = learn(tmp_path, engine, num_episode=2)
    weights = [float(rows[0]["weight"]) for _, rows in sorted(groups.items())]
    assert weights[4] == pytest.approx(weights[0] + 2)  # 16 samples an episode in global batches of 8


@pytest.mark.parametrize(
    ("reward", "arguments", "message"),
    [
        ([], {}, "got no reward"),
        ([Reward("a"), Reward("b")], {"reward_weights": [1]}, r"1 reward_weights for 2 rewards \(a, b\)"),
        ([Reward("a"), Reward("b")], {"reward_weights": [1, float("nan")]}, "a finite number for each of a, b"),
        ([Reward("a"), Reward("b")], {"reward_weights": 1.0}, "a finite number for each of a, b; got 1.0"),
        ([Reward("a"), Reward("b")], {"reward_weights": [0, 0]}, "all reward_weights"),
        ([Reward("a"), Reward("a")], {}, "the reward a is given twice"),
        (None, {}, "a reward is a module, or a list of them, got NoneType"),
        (Reward("a"), {"combine": "sum"}, "give sum_then_normalize or normalize_then_sum"),
        (Reward("a"), {"combine": "normalize_then_sum", "greedy_baseline": True}, "on their own scale"),
        (Reward("a"), {"advantages": Reward("b")}, "advantages is an AdvantageEstimator"),
    ],
)
def test_rewards_that_do_not_fit_are_refused(reward, arguments, message) -> None:
    with pytest.raises(EngineError, match=message):
        GRPOEngine(Policy("policy"), None, reward, Trainer("trainer"), **arguments)


@pytest.mark.parametrize(("role", "parts"), [("policy", (None, "t")), ("ppo_policy", ("p", None))])
def test_parts_that_are_missing_are_named(role, parts) -> None:
    policy, trainer = (Policy(name) if name else None for name in parts)
    with pytest.raises(EngineError, match=f"{role} is a module, got NoneType"):
        GRPOEngine(policy, None, Reward("reward"), trainer)


def test_a_single_reward_has_a_weight_too(tmp_path) -> None:
    engine = GRPOEngine(Policy("policy"), None, [Reward("reward")], Trainer("trainer"), reward_weights=[0.25])
    for rows in learn(tmp_path, engine).values():
        assert all(float(row["rewards"]) == pytest.approx(0.25 * float(row["action"])) for row in rows)


def test_a_policy_that_can_not_score_is_no_reference() -> None:
    policy = Reward("policy")
    with pytest.raises(EngineError, match="no step `reference_step`"):
        GRPOEngine(policy, policy, Reward("reward"), Trainer("trainer"))
