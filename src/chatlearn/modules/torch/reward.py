"""The reward: a verifiable function over prompts and responses, and from it advantages and returns."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from chatlearn.algorithms.advantages import gae
from chatlearn.algorithms.kl import kl_estimate
from chatlearn.algorithms.masking import masked_mean
from chatlearn.errors import ConfigError
from chatlearn.modules.base import BaseModule
from chatlearn.rewards.base import RewardFunction, resolve, score
from chatlearn.types import Batch


class RewardInference(BaseModule):
    """Scores responses with a reward function, and where values are there, estimates advantages from the scores.

    ``forward_step`` adds ``rewards``; given ``values`` also ``advantages`` and ``returns`` (GAE over per-token
    rewards: the score on a response's last token, minus ``kl_coef`` times the KL estimate on every token). A sample
    that the function can't score (``None``) gets reward 0 and an empty ``response_mask``, so that no trainer learns
    from it. Logs ``reward`` and ``accuracy`` (share of scores of at least ``success_score``) over the samples that
    were scored, ``finished``, ``kl`` (k1 estimate, nats per token), ``unscorable`` (number of samples).

    Args:
        name: the module's.
        reward: ``fn(prompts, completions, **columns) -> list[float | None]``; columns are the batch's other entries
            by name. Left out,
            ``models.<name>.args.reward`` names it.
    """

    class Args(BaseModel):
        """``models.<name>.args``."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        reward: str | None = Field(
            None,
            description="import path of the reward function, pkg.mod:name; or pass it to the constructor",
        )
        success_score: float = Field(1.0, description="a score from here on counts as a success in `accuracy`")
        unfinished_reward: float | None = Field(
            None, description="reward of a response that was cut off; null scores it like the others"
        )
        kl_coef: float = Field(
            0.0, ge=0, description="weight of the KL to the reference, subtracted from each token's reward"
        )
        kl_estimator: Literal["k1", "k2", "k3"] = Field("k1", description="estimator of that KL")
        gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
        lam: float = Field(1.0, ge=0, le=1, description="lambda of GAE")

    reads = frozenset({"prompt", "response", "finished"})
    writes = frozenset({"rewards", "response_mask", "advantages", "returns"})

    def __init__(self, name: str, reward: RewardFunction | str | None = None) -> None:
        super().__init__(name)
        self._given = reward

    def setup(self) -> None:
        """Resolves the reward function."""
        given = self._given or self.model_args.reward
        if given is None:
            raise ConfigError(
                f"{self.name} has no reward function. Pass one to the constructor, RewardInference({self.name!r}, "
                f"reward=fn), or name it: models.{self.name}.args.reward: pkg.mod:function"
            )
        self._reward = resolve(given)

    def forward_step(self, data: Batch) -> Batch:
        """Scores a batch of experience."""
        scores, scored = self._score(data)
        result = {**data, "rewards": scores}
        if not scored.all():
            result["response_mask"] = data["response_mask"] * scored.unsqueeze(1)
        if "values" in data:
            result |= self._advantages(result)
        return result

    def eval_step(self, data: Batch) -> Batch:
        """Scores a batch of an evaluation."""
        return {**data, "rewards": self._score(data)[0]}

    def _score(self, data: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[B]`` float32 and which of them are real ``[B]`` bool; logs what they say."""
        args = self.model_args
        columns = {key: value for key, value in data.items() if key not in ("prompt", "response")}
        given = score(self._reward, data["prompt"], data["response"], columns)
        scores = torch.tensor([math.nan if value is None else value for value in given], dtype=torch.float32)
        finished = data["finished"]
        if args.unfinished_reward is not None:
            scores = torch.where(finished | scores.isnan(), scores, args.unfinished_reward)
        scored = ~scores.isnan()
        self.log("unscorable", (~scored).sum(), "sum")
        self.log("finished", finished.float().mean())
        if scored.any():
            self.log("reward", scores[scored].mean())
            self.log("accuracy", (scores[scored] >= args.success_score).float().mean())
        return scores.nan_to_num_(0.0), scored

    def _advantages(self, data: Batch) -> dict[str, Any]:
        args, mask = self.model_args, data["response_mask"]
        positions = torch.arange(mask.shape[1])
        last = (mask * positions).argmax(1)
        token_rewards = torch.zeros_like(mask)
        token_rewards[torch.arange(len(mask)), last] = data["rewards"]
        if "ref_logprobs" in data:
            kl = kl_estimate(data["logprobs"], data["ref_logprobs"], "k1")
            self.log("kl", masked_mean(kl, mask))
            if args.kl_coef:
                penalty = (
                    kl
                    if args.kl_estimator == "k1"
                    else kl_estimate(data["logprobs"], data["ref_logprobs"], args.kl_estimator)
                )
                token_rewards = token_rewards - args.kl_coef * penalty
        advantages, returns = gae(token_rewards, data["values"], mask, gamma=args.gamma, lam=args.lam)
        return {"advantages": advantages, "returns": returns}
