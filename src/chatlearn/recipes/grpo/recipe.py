"""GRPO and its family on a task that a laptop learns in a minute: one recipe, a YAML file for each algorithm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatlearn.config.schema import Config
from chatlearn.engine.presets import GRPOEngine
from chatlearn.modules.advantage_estimator import AdvantageEstimator
from chatlearn.modules.torch import PolicyInference, PolicyReference, PolicyTrainer, RewardInference
from chatlearn.recipes.demo import Demo

CONFIG = Path(__file__).with_name("grpo.yaml")
"""The configuration of plain GRPO."""


def build(config: Config) -> tuple[GRPOEngine, Callable[[Any], Any]]:
    """The engine, and the flow that evaluates it."""
    policy = PolicyInference("policy")
    reward = RewardInference("reward")
    ppo_policy = PolicyTrainer("ppo_policy")
    estimator = config.models["advantages"].args if "advantages" in config.models else {}

    def eval_flow(batch: Any) -> Any:
        return reward.eval_step(policy.eval_step(batch))

    engine = GRPOEngine(
        policy,
        PolicyReference("reference") if "reference" in config.models else None,
        reward,
        ppo_policy,
        advantages=AdvantageEstimator("advantages"),
        recompute_logprobs=config.model("ppo_policy").args.get("importance_level") is not None,
        greedy_baseline=estimator.get("estimator") == "remax",
        drop_silent_groups=config.runtime.max_refill_rounds > 0,
    )
    return engine, eval_flow


DEMO = Demo(build, loading=["policy", "reference", "ppo_policy"], rules=["reward", "advantages"])
run, check = DEMO.run, DEMO.check
