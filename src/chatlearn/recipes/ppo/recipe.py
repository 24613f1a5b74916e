"""PPO with six models on a task that a laptop learns in a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatlearn.config.schema import Config
from chatlearn.engine.presets import RLHFEngine
from chatlearn.modules.torch import (
    PolicyInference,
    PolicyReference,
    PolicyTrainer,
    RewardInference,
    ValueInference,
    ValueTrainer,
)
from chatlearn.recipes.demo import Demo


def build(config: Config) -> tuple[RLHFEngine, Callable[[Any], Any]]:
    """The engine, and the flow that evaluates it."""
    policy = PolicyInference("policy")
    reference = PolicyReference("reference")
    reward = RewardInference("reward")
    value = ValueInference("value")
    ppo_policy = PolicyTrainer("ppo_policy")
    ppo_value = ValueTrainer("ppo_value")

    def eval_flow(batch: Any) -> Any:
        return reward.eval_step(policy.eval_step(batch))

    return RLHFEngine(policy, reference, reward, value, ppo_policy, ppo_value), eval_flow


DEMO = Demo(build, loading=["policy", "reference", "value", "ppo_policy", "ppo_value"], rules=["reward"])
run, check, rebuild = DEMO.run, DEMO.check, DEMO.rebuild
