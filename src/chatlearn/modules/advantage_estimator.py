"""From rewards of whole responses to advantages, relative to a group or not: a rule, without a model."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from chatlearn.algorithms.advantages import gae, grpo, remax
from chatlearn.algorithms.kl import AdaptiveKLController, KLEstimator, kl_estimate
from chatlearn.algorithms.reward_mixing import RewardMixing, combine_rewards
from chatlearn.errors import ConfigError, DataError
from chatlearn.guards import is_list
from chatlearn.modules.base import BaseModule, merge_batches, step
from chatlearn.types import Batch

GROUP_ESTIMATORS = {
    "grpo": "chatlearn.algorithms.advantages:grpo",
    "dr_grpo": "chatlearn.algorithms.advantages:dr_grpo",
    "rloo": "chatlearn.algorithms.advantages:rloo",
    "reinforce_plus_plus_baseline": "chatlearn.algorithms.advantages:dr_grpo",  # the trainer whitens
}
"""``estimator`` -> import path of ``fn(rewards_B, group_ids_B) -> advantages_B``: rewards of responses, NaN where one
could not be scored, compared within their group; advantage 0 where the reward is NaN."""

if TYPE_CHECKING:
    Estimator: TypeAlias = str
else:
    Estimator = Literal[(*GROUP_ESTIMATORS, "reinforce_plus_plus", "remax")]


class AdvantageEstimator(BaseModule):
    """Adds ``advantages``: float32 ``[B, T]`` where the batch has a ``response_mask``, 0 outside of it, else ``[B]``.

    Takes ``rewards`` ``[B]``; NaN, or ``scored`` ``[B]`` bool being false, marks a sample that could not be scored: it
    gets advantage 0 and has no part in its group's statistics. The output holds nothing else; a batch with
    ``advantages`` already, or without ``rewards``, passes unchanged. The estimators, all of
    :mod:`chatlearn.algorithms.advantages`:

    - ``grpo``, ``dr_grpo``, ``rloo``: relative to the sample's group (``self.batch.group_ids``);
    - ``reinforce_plus_plus``: the discounted return of each token, ``reinforce_plus_plus_baseline``: the reward less
      the group's mean. Their second half, whitening, is over the global batch and so the trainer's
      (``whiten_advantages: true``);
    - ``remax``: less the reward of the greedy response, :meth:`remax`.

    Given ``logprobs`` and ``ref_logprobs`` it logs ``kl`` (k1 estimate, nats per token); with ``kl_coef`` the estimate
    is subtracted from the rewards before anything else: its sum over the response, or token by token where the
    estimator has a reward per token. With ``kl_target`` the weight follows the target
    (:class:`~chatlearn.algorithms.kl.AdaptiveKLController`), once per episode. Logs ``signal`` (share of the groups
    whose rewards differ) and ``reward_std`` (mean of the groups' standard deviations) as well.

    Args:
        name: the module's.
    """

    class Args(BaseModel):
        """``models.<name>.args``."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        estimator: Estimator = Field("grpo", description="how rewards become advantages")
        gamma: float = Field(1.0, ge=0, le=1, description="discount per token, of reinforce_plus_plus")
        kl_coef: float = Field(0.0, ge=0, description="weight of the KL to the reference, subtracted from the reward")
        kl_estimator: KLEstimator = Field("k1", description="estimator of that KL")
        kl_target: float | None = Field(
            None, gt=0, description="nats per token that the weight steers towards; null: the weight is constant"
        )
        kl_horizon: float = Field(10_000.0, gt=0, description="samples over which that weight may double")
        max_batches_without_signal: int | None = Field(
            50,
            ge=1,
            description="a run in which no group of so many batches from its beginning has rewards that differ ends "
            "with an error; null: it goes on",
        )

        @field_validator("kl_target")
        @classmethod
        def _needs_a_weight(cls, value: float | None, info: Any) -> float | None:
            if value is not None and not info.data.get("kl_coef", 1):
                raise ValueError("needs a weight to begin with; set kl_coef above 0 beside it")
            return value

    optional_entry: ClassVar[bool] = True
    stateful = True
    reads = frozenset[str]()
    writes = frozenset({"advantages", "response_mask"})

    def setup(self) -> None:
        """Begins with the configured weight of the KL."""
        args = self.model_args
        self._silence = _Silence()
        if args.kl_target is not None:
            runtime = self.runtime_args
            further = runtime.max_refill_rounds * (runtime.refill_round_size or runtime.sample_per_episode)
            check_horizon(f"models.{self.name}.args.kl_horizon", args.kl_horizon, runtime.sample_per_episode + further)
            self.kl_controller = AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self._seen_kl: list[tuple[float, int, int]] = []

    @step(borrows=True)
    def forward_step(self, data: Batch) -> Batch:
        """Estimates the advantages of a batch of experience that holds whole groups.

        Raises:
            ConfigError: an estimator by groups, and no group has two samples.
            DataError: no batch since the run began had a group whose rewards differ.
        """
        if "advantages" in data or "rewards" not in data:
            return data
        if self.model_args.estimator == "remax":
            raise ConfigError(
                f"models.{self.name}.args.estimator: remax needs the rewards of greedy responses. Use "
                f"`{self.name}.remax(sampled, greedy)` in the flow, or GRPOEngine(…, greedy_baseline=True)."
            )
        return self._estimated(data, None)

    @step(reads=(), writes={"advantages"}, borrows=True)
    def remax(self, *outputs: Batch) -> Batch:
        """ReMax: the advantages of sampled responses against greedy ones, row by row to the same prompts.

        Args:
            outputs: those of the sampled responses, ``rewards`` among them; the last one is of the greedy responses.
        """
        return self._estimated(merge_batches(outputs[:-1]), self._scores(outputs[-1]))

    @step(reads=(), writes={"rewards", "scored", "reward_components"}, borrows=True)
    def combine(self, *outputs: Batch, names: Sequence[str], weights: Sequence[float], mode: RewardMixing) -> Batch:
        """The rewards of several reward modules as one; see
        :func:`~chatlearn.algorithms.reward_mixing.combine_rewards`.

        Args:
            outputs: of the reward modules, ``rewards`` ``[B]`` in each.
            names: of these modules.
            weights: one number each.
            mode: ``sum_then_normalize`` or ``normalize_then_sum``.

        Returns:
            The outputs merged, with the combined ``rewards``, ``scored``, and ``reward_components`` by module.
        """
        for name, output in zip(names, outputs, strict=True):
            if "rewards" not in output:
                raise DataError(f"the reward module {name} returns no `rewards`; it has {', '.join(output) or 'none'}.")
        if mode == "normalize_then_sum":
            self._check_groups("normalize_then_sum")
        scores = {name: self._scores(output) for name, output in zip(names, outputs, strict=True)}
        by_name = dict(zip(names, weights, strict=True))
        rewards = combine_rewards(scores, by_name, self.batch.group_ids, mode=mode)
        for name, score in scores.items():
            if not score.isnan().all():
                self.log(f"reward/{name}", score.nanmean())
        scored, merged = ~rewards.isnan(), merge_batches(outputs)
        masks = [output["response_mask"] for output in outputs if "response_mask" in output]
        if masks:  # a module empties the mask of what it can't score, whatever its weight
            whole = torch.stack([mask.float() for mask in masks]).amax(0)
            merged["response_mask"] = whole * scored.unsqueeze(1)
        return {**merged, "rewards": rewards.nan_to_num(0.0), "scored": scored, "reward_components": scores}

    @step(filters=True, reads={"advantages"}, writes=(), borrows=True)
    def keep_signal(self, data: Batch) -> Batch:
        """Drops the groups whose samples all have the same reward: nothing is learned from them (dynamic sampling of
        DAPO, Yu et al. 2025, arXiv:2503.14476, section 3.2). Where rewards are not compared within a group (ReMax, or
        advantages of the reward module's own), a group goes whose advantages are all 0.

        Raises:
            ConfigError: rewards are to be compared, and no group has two samples.
        """
        groups = self.batch.group_ids
        if "rewards" in data and self.model_args.estimator != "remax":
            self._check_groups("leaving out groups without signal")
            has_signal = _group_std(self._scores(data), groups) > 0
        else:
            rows = data["advantages"].flatten(1).any(1) if data["advantages"].ndim > 1 else data["advantages"].bool()
            loud = {group for group, row in zip(groups, rows, strict=True) if row}
            has_signal = torch.tensor([group in loud for group in groups])
        return {"advantages": data["advantages"][has_signal], "source_rows": has_signal.nonzero().flatten()}

    def after_episode(self) -> None:
        """Moves the KL's weight by what the episode has shown."""
        if self.model_args.kl_target is not None and (tokens := sum(count for _, count, _ in self._seen_kl)):
            kl = sum(total for total, _, _ in self._seen_kl) / tokens
            self.kl_controller.update(kl, sum(samples for _, _, samples in self._seen_kl))
        self._seen_kl = []

    def _estimated(self, data: Batch, baseline_B: Tensor | None) -> Batch:
        args, scores_B = self.model_args, self._scores(data)
        if baseline_B is None and args.estimator in GROUP_ESTIMATORS:
            self._check_groups(args.estimator)
        self._watch(scores_B, baseline_B)
        penalty_BT = self._penalty(data)
        mask_BT = data["response_mask"].float() if "response_mask" in data else None
        if args.estimator == "reinforce_plus_plus":
            if mask_BT is None:
                raise DataError("reinforce_plus_plus has a reward per token, but the batch has no `response_mask`.")
            token_rewards_BT = _at_the_end(scores_B.nan_to_num(0.0), mask_BT)
            if penalty_BT is not None:
                token_rewards_BT = token_rewards_BT - penalty_BT
            mask_BT = mask_BT * ~scores_B.isnan().unsqueeze(1)
            advantages, _ = gae(token_rewards_BT, torch.zeros_like(mask_BT), mask_BT, gamma=args.gamma, lam=1.0)
            return {"advantages": advantages, **self._emptied(data, scores_B)}
        if penalty_BT is not None:
            scores_B = scores_B - penalty_BT.sum(1)
        advantages_B = self._of_rewards(scores_B, baseline_B)
        spread = advantages_B if mask_BT is None else advantages_B.unsqueeze(1) * mask_BT
        return {"advantages": spread, **self._emptied(data, scores_B)}

    def _emptied(self, data: Batch, scores_B: Tensor) -> Batch:
        """The response mask without the samples that could not be scored, where there are any."""
        if "response_mask" not in data or not scores_B.isnan().any():
            return {}
        return {"response_mask": data["response_mask"] * ~scores_B.isnan().unsqueeze(1)}

    def _check_groups(self, what: str) -> None:
        groups = self.batch.group_ids
        is_alone = self.runtime_args is None or self.runtime_args.num_inference_per_prompt == 1
        if is_alone and len(set(groups)) == len(groups) > 0:
            raise ConfigError(
                f"models.{self.name}.args.estimator: {what} compares the responses to a prompt, but each of the "
                f"{len(groups)} samples is a group of its own. Set runtime.num_inference_per_prompt to 2 or more, or "
                f"take reinforce_plus_plus or remax and keep all."
            )

    def _of_rewards(self, scores_B: Tensor, baseline_B: Tensor | None) -> Tensor:
        groups = torch.tensor(self.batch.group_ids)
        if baseline_B is not None:
            return remax(scores_B, baseline_B)
        module, _, name = GROUP_ESTIMATORS[self.model_args.estimator].partition(":")
        return getattr(importlib.import_module(module), name)(scores_B, groups)

    def _scores(self, data: Batch) -> Tensor:
        """Rewards ``[B]`` float32, NaN where a sample could not be scored."""
        given: Any = data["rewards"]
        if is_list(given):
            given = [math.nan if value is None else value for value in given]
        try:
            rewards = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"`rewards` must be numbers, or None where there is none: {error}.") from error
        if rewards.ndim != 1:
            raise DataError(f"`rewards` has shape {list(rewards.shape)}; expected [B], one number per sample.")
        if rewards.isinf().any():
            row = int(rewards.isinf().nonzero()[0])
            name = f" (id {self.batch.sample_ids[row]})" if self.batch.sample_ids else ""
            raise DataError(
                f"`rewards`: sample {row} of the batch{name} got {float(rewards[row])}, which would make NaN of its "
                f"whole group. Give a finite number that float32 holds, or None where a sample can't be scored."
            )
        scored = data.get("scored")
        return rewards if scored is None else torch.where(torch.as_tensor(scored).bool(), rewards, math.nan)

    def _penalty(self, data: Batch) -> Tensor | None:
        """What the KL takes from each token's reward ``[B, T]``; ``None`` if nothing."""
        args = self.model_args
        missing = [key for key in ("logprobs", "ref_logprobs", "response_mask") if key not in data]
        if missing:
            if args.kl_coef:
                raise DataError(
                    f"models.{self.name}.args.kl_coef is {args.kl_coef}, but the batch has no {', '.join(missing)}. "
                    f"Give the engine a reference, or set kl_coef to 0."
                )
            return None
        mask = data["response_mask"].bool()
        kl = torch.where(mask, kl_estimate(data["logprobs"], data["ref_logprobs"], "k1"), 0)
        num_tokens = int(mask.sum())
        self.log("kl", kl.sum() / max(num_tokens, 1))
        if not args.kl_coef:
            return None
        self._seen_kl.append((float(kl.sum()), num_tokens, len(mask)))
        coef = args.kl_coef if args.kl_target is None else self.kl_controller.coef
        self.log("kl_coef", coef)
        if args.kl_estimator != "k1":
            kl = torch.where(mask, kl_estimate(data["logprobs"], data["ref_logprobs"], args.kl_estimator), 0)
        return coef * kl

    def _watch(self, scores_B: Tensor, baseline_B: Tensor | None) -> None:
        """Logs how much there is to learn from, and ends a run that has nothing."""
        if baseline_B is not None or len(set(self.batch.group_ids)) == len(scores_B):
            signal = (scores_B != (scores_B.nanmean() if baseline_B is None else baseline_B)) & ~scores_B.isnan()
            share = signal.float().mean()
        else:
            firsts = torch.tensor(list({group: row for row, group in enumerate(self.batch.group_ids)}.values()))
            std = _group_std(scores_B, self.batch.group_ids)[firsts]
            share = (std > 0).float().mean()
            self.log("reward_std", std.mean())
        self.log("signal", share)
        limit = self.model_args.max_batches_without_signal
        if self._silence.lasts(bool(share > 0)) == limit:
            known = scores_B[~scores_B.isnan()]
            low, high = (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)
            raise DataError(
                f"{self.name}: in all {limit} batches since the run began, every group's rewards are equal, so there "
                f"is nothing to learn from. The last batch's rewards lie between {low:g} and {high:g}. Check the "
                f"reward function, make the task easier or the policy better to begin with; "
                f"models.{self.name}.args.max_batches_without_signal sets the limit."
            )


def check_horizon(key: str, horizon: float, num_samples: int) -> None:
    """An adaptive weight can't reach 0 in one step.

    Args:
        key: of the configuration.
        horizon: its value.
        num_samples: the most samples between two changes of the weight.

    Raises:
        ConfigError: it could.
    """
    if horizon <= 0.2 * num_samples:
        raise ConfigError(
            f"{key} is {horizon:g}, but the weight changes once in {num_samples} samples, so it could fall to 0 at "
            f"once. Set it above {0.2 * num_samples:g}; ten times that or more keeps the weight steady."
        )


class _Silence:
    """For how many batches from the beginning of a run no group has told anything."""

    def __init__(self) -> None:
        self.batches, self.is_broken = 0, False

    def lasts(self, has_signal: bool) -> int:
        """Takes note of a batch; the number of silent ones, 0 once there was a signal."""
        self.is_broken = self.is_broken or has_signal
        self.batches = 0 if self.is_broken else self.batches + 1
        return self.batches

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"batches": self.batches, "is_broken": self.is_broken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it back."""
        self.batches, self.is_broken = int(state["batches"]), bool(state["is_broken"])


def _group_std(scores_B: Tensor, group_ids: Sequence[int]) -> Tensor:
    """The standard deviation of each sample's group ``[B]``; 0 where fewer than two could be scored."""
    centered_B = grpo(scores_B, group_ids, normalize_std=False)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(group_ids))}
    index_B = torch.tensor([numbers[group] for group in group_ids], dtype=torch.int64)
    sums = centered_B.new_zeros(len(numbers)).index_add(0, index_B, centered_B.square())
    counts = centered_B.new_zeros(len(numbers)).index_add(0, index_B, (~scores_B.isnan()).float())
    return (sums / (counts - 1).clamp(min=1)).sqrt()[index_B]


def _at_the_end(scores_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Scores as rewards per token: on the last token of each response."""
    positions = torch.arange(mask_BT.shape[1])
    rewards_BT = torch.zeros_like(mask_BT)
    rewards_BT[torch.arange(len(mask_BT)), (mask_BT * positions).argmax(1)] = scores_B
    return rewards_BT
