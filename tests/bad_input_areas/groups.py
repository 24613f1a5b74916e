"""Groups that can't be compared, rewards that tell nothing, objectives that don't fit together."""

from __future__ import annotations

from typing import Any

import torch
import toys
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, module

import chatlearn
from chatlearn import ConfigError, DataError, EngineError, GRPOEngine, StepError
from chatlearn.modules.torch import PolicyTrainer

CAUSES = Causes()
cause = CAUSES.cause

AT_ADVANTAGES = "advantages[0].forward_step, rank 0, episode 1, batch"
TRAINER = "dict  models.trainer.args"


class Policy(Echo):
    """Can be greedy."""

    def forward_step(self, data: dict[str, Any], greedy: bool = False) -> dict[str, Any]:
        return data


def rewards_of(value: float) -> Any:
    """A reward module that gives each sample the same."""
    return module("reward", forward_step=lambda self, data: {"rewards": torch.full((len(data["prompt"]),), value)})


def grpo(reward: Any, models: dict[str, Any] | None = None, trainer: Any = None, **runtime: Any) -> GRPOEngine:
    """An engine of groups over a few prompts."""
    sizes = {"num_inference_per_prompt": 4, "sample_per_episode": 16, "generation_batch_size": 8, **runtime}
    settings = toys.settings("runs", **sizes)
    names = ("policy", "reward", "trainer")
    chatlearn.init({**settings, "models": {**{name: {} for name in names}, **models}} if models else settings)
    flags = {"drop_silent_groups": True} if "max_refill_rounds" in runtime else {}
    return GRPOEngine(Policy("policy"), None, reward, trainer or Echo("trainer"), **flags).set_dataset(["a", "b", "c"])


@cause(
    StepError,
    says="grpo compares the responses to a prompt, but each of the 8 samples is a group of its own",
    at=AT_ADVANTAGES,
    fix="Set runtime.num_inference_per_prompt to 2 or more",
)
def group_of_one() -> None:
    """A group estimator gets one response to each prompt."""
    grpo(rewards_of(1.0), num_inference_per_prompt=1).learn()


@cause(
    StepError,
    says="in all 3 batches since the run began, every group's rewards are equal",
    at=("advantages[0].forward_step, rank 0, episode 2, batch 2", "lie between 0.5 and 0.5"),
    fix="Check the reward function",
)
def no_signal() -> None:
    """No group has rewards that differ, batch after batch."""
    grpo(rewards_of(0.5), {"advantages": {"args": {"max_batches_without_signal": 3}}}).learn()


@cause(
    DataError,
    says="have dropped all 48 samples of 3 rounds",
    at=("advantages.keep_signal", "episode 1"),
    fix="runtime.max_refill_rounds",
)
def nothing_left() -> None:
    """All groups are dropped, in every round that is allowed."""
    grpo(rewards_of(0.5), max_refill_rounds=2).learn()


@cause(
    ConfigError,
    says="is 6, but runtime.num_inference_per_prompt is 4",
    at="dict  runtime.refill_round_size",
    fix="another multiple of 4",
)
def split_group() -> None:
    """A further round would end inside of a group."""
    grpo(rewards_of(0.5), max_refill_rounds=2, refill_round_size=6).learn()


@cause(
    StepError,
    says="remax needs the rewards of greedy responses",
    at=("models.advantages.args.estimator", AT_ADVANTAGES),
    fix="GRPOEngine(…, greedy_baseline=True)",
)
def remax_without_baseline() -> None:
    """ReMax has no baseline."""
    grpo(rewards_of(0.5), {"advantages": {"args": {"estimator": "remax"}}}).learn()


@cause(
    StepError,
    says="kl_coef is 0.1, but the batch has no logprobs, ref_logprobs",
    at=("models.advantages.args.kl_coef", AT_ADVANTAGES),
    fix="Give the engine a reference, or set kl_coef to 0",
)
def kl_without_reference() -> None:
    """The reward is to hold a KL, but there is no reference."""
    grpo(rewards_of(0.5), {"advantages": {"args": {"kl_coef": 0.1}}}).learn()


@cause(
    EngineError,
    says="got 1 reward_weights for 2 rewards (rule, judge)",
    at="GRPOEngine",
    fix="Give one number for each",
)
def too_few_weights() -> None:
    """Two rewards have one weight."""
    GRPOEngine(Policy("policy"), None, [Echo("rule"), Echo("judge")], Echo("trainer"), reward_weights=[1.0])


def refused(**args: Any) -> None:
    """A trainer with these settings."""
    args = {"learning_rate": 1e-3, "model_path": "some-model", **args}
    grpo(rewards_of(0.5), {"trainer": {"args": args}}, PolicyTrainer("trainer")).learn()


@cause(ConfigError, says="'token_mean' is not for loss 'gspo'", at=TRAINER, fix="use aggregation seq_mean_mean")
def token_mean_of_sequences() -> None:
    """A loss of whole sequences is averaged over tokens."""
    refused(loss="gspo", aggregation="token_mean")


@cause(ConfigError, says="aggregation 'constant' divides by a length", at=TRAINER, fix="set max_length")
def constant_without_length() -> None:
    """Dr. GRPO's aggregation has no length to divide by."""
    refused(aggregation="constant")


@cause(ConfigError, says="loss 'sapo' has a gate in the place of clipping", at=TRAINER, fix="leave clip_low and")
def clipped_gate() -> None:
    """A loss without clipping gets bounds."""
    refused(loss="sapo", clip_high=0.2)
