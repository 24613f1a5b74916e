"""GRPO and its family on a task that a laptop learns in a minute: one recipe, a YAML file for each algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatlearn.config.schema import Config
from chatlearn.engine.presets import GRPOEngine
from chatlearn.modules.advantage_estimator import AdvantageEstimator
from chatlearn.modules.torch import PolicyInference, PolicyReference, PolicyTrainer, RewardInference
from chatlearn.recipes.demo import Demo


def build(config: Config) -> tuple[GRPOEngine, Callable[[Any], Any]]:
    """The engine, and the flow that evaluates it."""
    policy = PolicyInference("policy")
    reward = RewardInference("reward")
    ppo_policy = PolicyTrainer("ppo_policy")
    estimator = config.model("advantages").args
    uses_kl = bool(estimator.get("kl_coef") or config.model("ppo_policy").args.get("kl_loss_coef"))
    if "reference" in config.models:
        reference = PolicyReference("reference")
    else:  # an adapter's base model is there already
        reference = policy if uses_kl and config.model("policy").args.get("lora") else None

    def eval_flow(batch: Any) -> Any:
        return reward.eval_step(policy.eval_step(batch))

    engine = GRPOEngine(
        policy,
        reference,
        reward,
        ppo_policy,
        advantages=AdvantageEstimator("advantages"),
        recompute_logprobs=config.model("ppo_policy").args.get("importance_level") is not None,
        greedy_baseline=estimator.get("estimator") == "remax",
        drop_silent_groups=config.runtime.max_refill_rounds > 0,
    )
    return engine, eval_flow


DEMO = Demo(build, loading=["policy", "reference", "ppo_policy"], rules=["reward", "advantages"])
run, check, rebuild = DEMO.run, DEMO.check, DEMO.rebuild
