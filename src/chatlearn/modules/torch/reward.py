"""The reward: one function, or several components, over prompts and responses; and from it advantages and returns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor

from chatlearn.algorithms.advantages import gae
from chatlearn.algorithms.kl import KLEstimator, kl_estimate
from chatlearn.algorithms.masking import masked_mean
from chatlearn.algorithms.reward_mixing import RewardMixing, combine_rewards
from chatlearn.config.values import problem
from chatlearn.errors import ConfigError, DataError
from chatlearn.modules.base import BaseModule
from chatlearn.modules.torch.offload import memory_of
from chatlearn.modules.torch.reward_components import (
    Component,
    FunctionSource,
    LearnedState,
    RewardComponentArgs,
    sample_names,
)
from chatlearn.rewards.base import RewardFunction
from chatlearn.rewards.build import build_reward
from chatlearn.types import Batch


class RewardInference(BaseModule):
    """Scores responses with a reward function or several components, and where values are there, estimates advantages.

    ``forward_step`` adds ``rewards`` ``[B]`` float32 and ``scored`` ``[B]`` bool; with components also
    ``reward_components``, a dict of their raw scores ``[B]`` float32 by name, NaN where one could not score a sample.
    Given ``values`` it adds ``advantages`` and ``returns`` (GAE over per-token rewards: the score on a response's last
    token, minus ``kl_coef`` times the KL estimate on every token).

    A sample that can't be scored (``None``, of any component whose weight is not 0) has reward 0, ``scored`` false and
    an empty ``response_mask`` (where the batch has one), so that no trainer learns from it.

    The reward is the weighted sum of the components, or with ``combine: normalize_then_sum`` that of the components
    normalised in their groups (:func:`chatlearn.algorithms.reward_mixing.combine_rewards`). In an evaluation
    (``eval_step``), which has no groups, it is always the weighted sum, and learned rewards are not scaled.

    Logs ``reward`` (the weighted sum) and ``accuracy`` (share of scores of at least ``success_score``) over the samples
    that were scored, ``finished``, ``unscorable`` (number of samples), ``kl`` (k1 estimate, nats per token), and for
    each component ``reward/<name>`` and ``reward_std/<name>``, mean and sample standard deviation of its raw scores.

    Args:
        name: the module's.
        reward: ``fn(prompts, completions, **columns) -> list[float | None]``; columns are the batch's other entries
            by name. Left out,
            ``models.<name>.args`` names it under ``reward``, or components under ``rewards``.
    """

    class Args(BaseModel):
        """``models.<name>.args``."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        reward: str | None = Field(
            None,
            description="import path of the reward function, pkg.mod:name; or pass it to the constructor",
        )
        rewards: list[RewardComponentArgs] = Field(
            [], description="components of the reward, in place of `reward`; their keys stand in rewards.md"
        )
        combine: RewardMixing = Field(
            "sum_then_normalize",
            description="`sum_then_normalize` adds weighted components, `normalize_then_sum` first normalises each "
            "in its group",
        )
        accuracy_of: str | None = Field(
            None, description="name of the component that `accuracy` is counted from; null: the first"
        )
        success_score: float = Field(
            1.0, allow_inf_nan=False, description="a score from here on counts as a success in `accuracy`"
        )
        unfinished_reward: float | None = Field(
            None,
            allow_inf_nan=False,
            description="reward of a response that was cut off; null scores it like the others",
        )
        kl_coef: float = Field(
            0.0, ge=0, description="weight of the KL to the reference, subtracted from each token's reward"
        )
        kl_estimator: KLEstimator = Field("k1", description="estimator of that KL")
        gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
        lam: float = Field(1.0, ge=0, le=1, description="lambda of GAE")

        @field_validator("rewards")
        @classmethod
        def _fit_together(cls, value: list[RewardComponentArgs], info: ValidationInfo) -> list[RewardComponentArgs]:
            names = [component.name for component in value]
            if value and info.data.get("reward") is not None:
                raise problem("`reward` stands beside it", "keep one; `reward` becomes a component with `function`")
            if twice := [name for name in names if names.count(name) > 1]:
                raise problem(f"two components have the name {twice[0]!r}", "rename one")
            if value and not any(component.weight for component in value):
                raise problem("all weights are 0, so nothing would be learned", "give one component a weight")
            return value

        @field_validator("accuracy_of")
        @classmethod
        def _is_a_component(cls, value: str | None, info: ValidationInfo) -> str | None:
            names = [component.name for component in info.data.get("rewards", [])]
            if value is not None and value not in names and "rewards" in info.data:
                known = f"write one of {', '.join(names)}" if names else "remove it, or list components under rewards"
                raise problem(f"no component has the name {value!r}", known)
            return value

        @field_validator("unfinished_reward")
        @classmethod
        def _has_a_scale(cls, value: float | None, info: ValidationInfo) -> float | None:
            if value is not None and info.data.get("combine") == "normalize_then_sum":
                raise problem("normalised rewards have no fixed scale", "set `unfinished` of the components instead")
            return value

    reads = frozenset({"prompt", "response", "finished"})
    writes = frozenset({"rewards", "scored", "reward_components", "response_mask", "advantages", "returns"})

    def __init__(self, name: str, reward: RewardFunction | str | None = None) -> None:
        super().__init__(name)
        self._given = reward

    def setup(self) -> None:
        """Resolves functions and loads learned models.

        Raises:
            ConfigError: there is no reward, or one can't be made.
        """
        args, section = self.model_args, f"models.{self.name}.args"
        self._function: FunctionSource | None = None
        self._components = [
            Component(part, self.device, f"{section}.rewards.{number}") for number, part in enumerate(args.rewards)
        ]
        learned = {part.name: part.learned for part in self._components if part.learned is not None}
        if learned:
            self.learned = LearnedState(learned)
            self._check_replicas()
        given = self._given or args.reward
        if given is None and not args.rewards:
            raise ConfigError(
                f"{self.name} has no reward function. Pass one to the constructor, RewardInference({self.name!r}, "
                f"reward=fn), or name it: {section}.reward: pkg.mod:function; or list components: {section}.rewards"
            )
        if given is not None and args.rewards:
            raise ConfigError(
                f"{section}.rewards lists components, but the constructor got a reward too. Keep one of the two; a "
                f"function becomes a component by its import path: {{name: mine, function: pkg.mod:function}}"
            )
        if given is not None:
            self._function = FunctionSource(build_reward(given))

    def forward_step(self, data: Batch) -> Batch:
        """Scores a batch of experience.

        Raises:
            ConfigError: ``combine: normalize_then_sum``, and no two samples answer the same prompt.
            DataError: a component raises, or does not give a number or ``None`` for each sample, or the reward has no
                float32; the component is named, and the sample where one is to blame.
        """
        if self.model_args.combine == "normalize_then_sum":
            self._check_groups()
        result = {**data, **self._scored(data, is_eval=False)}
        if "response_mask" in data and not result["scored"].all():
            result["response_mask"] = data["response_mask"] * result["scored"].unsqueeze(1)
        if "values" in data:
            result |= self._advantages(result)
        return result

    def eval_step(self, data: Batch) -> Batch:
        """Scores a batch of an evaluation; raises as :meth:`forward_step`."""
        return {**data, **self._scored(data, is_eval=True)}

    def after_episode(self) -> None:
        """Learned rewards with a running scale take in what they saw."""
        if "learned" in self.__dict__:
            self.learned.end_episode()

    def offload(self, tags: Collection[str]) -> None:
        """Moves learned models to host memory (tag ``weights``) as :meth:`TorchModule.offload
        <chatlearn.modules.torch.module.TorchModule.offload>` does.
        """
        models = [part.learned.model for part in self._components if part.learned is not None]
        memory_of(self).offload({"weights"}.intersection(tags), models)

    def onload(self, tags: Collection[str]) -> None:
        """Takes learned models back to where they were."""
        memory_of(self).onload(tags)

    def _check_replicas(self) -> None:
        num_replica = getattr(self.module_args, "num_replica", 1)
        running = [c.name for c in self._components if c.args.model is not None and c.args.model.scaling == "running"]
        if running and num_replica > 1:
            raise ConfigError(
                f"models.{self.name}.num_replica is {num_replica}, but the component {running[0]!r} has `scaling: "
                "running`, which counts the scores of all samples in one place. Set num_replica to 1, or take "
                "`scaling: group`."
            )

    def _check_groups(self) -> None:
        group_ids = self.batch.group_ids
        if len(set(group_ids)) == len(group_ids):
            raise ConfigError(
                f"models.{self.name}.args.combine is normalize_then_sum, but each of the {len(group_ids)} samples of "
                "the batch answers a prompt of its own, so every reward would be 0. Set "
                "runtime.num_inference_per_prompt to 2 or more, or take `combine: sum_then_normalize`."
            )

    def _scored(self, data: Batch, is_eval: bool) -> dict[str, Any]:
        """``rewards``, ``scored`` and ``reward_components`` of a batch; logs what they say."""
        args, group_ids = self.model_args, self.batch.group_ids
        raw = self._raw_scores(data)
        weights = {"": 1.0} if self._function else {c.name: c.weight for c in self._components}
        unscorable = torch.stack([raw[name].isnan() for name, weight in weights.items() if weight]).any(0)
        values = raw
        if self._components:
            # a sample that one component can't score has no part in the statistics of another
            known = {name: torch.where(unscorable & (weights[name] != 0), torch.nan, raw[name]) for name in raw}
            values = {c.name: c.values(known[c.name], group_ids, is_eval=is_eval) for c in self._components}
        total = combine_rewards(values, weights, group_ids)
        rewards = total
        if args.combine != "sum_then_normalize" and not is_eval:
            rewards = combine_rewards(values, weights, group_ids, mode=args.combine)
        judged = raw[args.accuracy_of or next(iter(raw))]
        if args.unfinished_reward is not None:
            replaced = ~(data["finished"] | unscorable)
            rewards, total, judged = (
                torch.where(replaced, args.unfinished_reward, x) for x in (rewards, total, judged)
            )
        if (odd := ~(rewards.isfinite() | unscorable)).any():
            name = sample_names(self.batch, len(rewards))[int(odd.nonzero()[0])]
            raise DataError(
                f"{self.name}: the reward of {name} is too large for float32. Give the components smaller weights, or "
                "`clip`."
            )
        self._log(raw, total, judged, data["finished"])
        result: dict[str, Any] = {"rewards": torch.where(unscorable, 0.0, rewards), "scored": ~unscorable}
        if self._components:
            result["reward_components"] = {**data.get("reward_components", {}), **raw}
        return result

    def _raw_scores(self, data: Batch) -> dict[str, Tensor]:
        """Scores ``[B]`` float32 by component, NaN where there is none; a single function has no name."""
        if self._function is not None:
            return {"": self._function.scores(data, self.batch)}
        return {component.name: component.scores(data, self.batch) for component in self._components}

    def _log(self, raw: dict[str, Tensor], total: Tensor, judged: Tensor, finished: Tensor) -> None:
        self.log("unscorable", total.isnan().sum(), "sum")
        self.log("finished", finished.float().mean())
        if len(scored := total[~total.isnan()]):
            self.log("reward", scored.mean())
        if len(scored := judged[~judged.isnan()]):
            self.log("accuracy", (scored >= self.model_args.success_score).float().mean())
        for name, scores in raw.items():
            scored = scores[~scores.isnan()]
            if name and len(scored):
                self.log(f"reward/{name}", scored.mean())
            if name and len(scored) > 1:
                self.log(f"reward_std/{name}", scored.std())

    def _advantages(self, data: Batch) -> dict[str, Any]:
        args, mask = self.model_args, data["response_mask"]
        positions = torch.arange(mask.shape[1])
        last = (mask * positions).argmax(1)
        token_rewards = torch.zeros(mask.shape)
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
