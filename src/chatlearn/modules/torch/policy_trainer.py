"""Training a policy on experience with the clipped objective of PPO and those that came after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from chatlearn.algorithms.importance import ImportanceLevel, ImportanceMode, importance_weights
from chatlearn.algorithms.kl import AdaptiveKLController, KLEstimator, kl_estimate
from chatlearn.algorithms.losses import (
    Aggregation,
    aggregate_sum,
    cispo_loss_per_token,
    gspo_loss_per_token,
    policy_loss_per_token,
    sapo_loss_per_token,
)
from chatlearn.algorithms.losses.surrogate import LossAndMetrics
from chatlearn.algorithms.masking import masked_whiten
from chatlearn.config.values import problem
from chatlearn.errors import DataError
from chatlearn.modules.advantage_estimator import check_horizon
from chatlearn.modules.base import step
from chatlearn.modules.torch.huggingface import load_causal_lm, load_tokenizer
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.optimization import TrainArgs, check_num_minibatches, make_optimizer, run_updates
from chatlearn.modules.torch.preparation import precision
from chatlearn.modules.torch.scoring import Window, policy_logprobs, policy_logprobs_and_entropy
from chatlearn.types import Batch

_AGGREGATIONS: dict[str, tuple[Aggregation, ...]] = {
    "ppo": ("token_mean", "seq_mean_mean", "seq_sum_mean", "constant"),
    "gspo": ("seq_mean_mean",),
    "cispo": ("token_mean", "seq_mean_mean", "seq_sum_mean", "constant"),
    "sapo": ("seq_mean_mean", "token_mean"),
}
"""Loss -> the ways of aggregating it that make sense, the usual one first."""


class PolicyArgs(TrainArgs):
    """``models.<name>.args`` of a :class:`PolicyTrainer`."""

    temperature: float = Field(1.0, gt=0, description="that the responses were sampled with")
    loss: Literal["ppo", "gspo", "cispo", "sapo"] = Field("ppo", description="objective; see docs/algorithms.md")
    clip_low: float | None = Field(
        None,
        ge=0,
        le=1,
        description="ratios below 1 - clip_low are clipped (1: no bound); null: 0.2 of ppo, 3e-4 of gspo, 1 of cispo",
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="ratios above 1 + clip_high are clipped; null: 0.2 of ppo, 4e-4 of gspo, 4 of cispo",
    )
    dual_clip: float | None = Field(
        None, gt=1, description="of ppo: bound on the ratio where the advantage is negative"
    )
    tau_pos: float = Field(1.0, gt=0, description="of sapo: temperature of the gate for positive advantages")
    tau_neg: float = Field(1.05, gt=0, description="of sapo: temperature of the gate for negative advantages")
    aggregation: Aggregation | None = Field(
        None, description="of token losses; null: token_mean for ppo and cispo, seq_mean_mean for gspo and sapo"
    )
    max_length: int | None = Field(
        None, ge=1, description="of aggregation `constant`: tokens that each response is divided by"
    )
    whiten_advantages: bool | None = Field(
        None, description="over the global batch; null: where they come from a value model (the batch has `returns`)"
    )
    kl_loss_coef: float = Field(
        0.0, ge=0, description="weight of the KL to the reference in the loss; needs ref_logprobs"
    )
    kl_estimator: KLEstimator = Field("k3", description="estimator of that KL")
    kl_target: float | None = Field(
        None, gt=0, description="nats per token that this weight steers towards; null: the weight is constant"
    )
    kl_horizon: float = Field(10_000.0, gt=0, description="samples over which that weight may double")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus, nats per token")
    importance_level: ImportanceLevel | None = Field(
        None,
        description="correct for the difference between the sampler's and the trainer's probabilities, by token or by "
        "sequence; needs old_logprobs (recompute_logprobs of the engine); null: no correction",
    )
    importance_mode: ImportanceMode = Field("truncate", description="what becomes of weights above the cap")
    importance_cap: float = Field(2.0, gt=0, description="largest weight of that correction")

    @property
    def aggregation_used(self) -> Aggregation:
        """The aggregation that is asked for, or the usual one of the loss."""
        return self.aggregation or _AGGREGATIONS[self.loss][0]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        legal = _AGGREGATIONS[self.loss]
        if self.aggregation is not None and self.aggregation not in legal:
            raise problem(
                f"aggregation {self.aggregation!r} is not for loss {self.loss!r}",
                f"use aggregation {' or '.join(legal)}",
            )
        if self.aggregation == "constant" and self.max_length is None:
            raise problem("aggregation 'constant' divides by a length", "set max_length beside it")
        if self.loss == "sapo" and (self.clip_low is not None or self.clip_high is not None):
            raise problem("loss 'sapo' has a gate in the place of clipping", "leave clip_low and clip_high out")
        if self.loss != "ppo" and self.dual_clip is not None:
            raise problem(f"dual_clip is not for loss {self.loss!r}", "leave dual_clip out, or take loss 'ppo'")
        if self.kl_target is not None and not self.kl_loss_coef:
            raise problem("kl_target needs a weight to begin with", "set kl_loss_coef above 0 beside it")
        return self


class PolicyTrainer(TorchModule):
    """Updates a policy on sampled responses with a loss of :mod:`chatlearn.algorithms.losses`.

    Takes ``tokens``, ``attention_mask``, ``response_mask``, ``logprobs`` and ``advantages``; with ``old_logprobs``
    (this module's ``forward_step``) these are the denominator of the ratios, else ``logprobs`` are. Each loss is
    normalised over its minibatch, whatever the micro-batches. Logs ``loss``, ``clip_frac``, ``approx_kl``,
    ``grad_norm``, ``learning_rate``; where it is used ``kl``, ``kl_coef``, ``entropy``, ``importance_weight``; and the
    difference between this model and the sampler on the same tokens before the first update: ``mismatch_kl`` (mean k3
    estimate of KL(sampler || trainer), nats per token) and ``mismatch_max`` (largest difference of two
    log-probabilities).
    """

    Args = PolicyArgs

    reads = frozenset({"tokens", "attention_mask", "response_mask", "logprobs", "advantages"})
    writes = frozenset[str]()

    def setup(self) -> None:
        """Loads the model and makes the optimizer."""
        args = self.model_args
        self.model = load_causal_lm(args, self.device)
        self.tokenizer = load_tokenizer(args)
        self.optimizer = make_optimizer(self.model, args)
        check_num_minibatches(self)
        if args.kl_target is not None:
            key, num_samples = f"models.{self.name}.args.kl_horizon", self.runtime_args.train_global_batch_size
            check_horizon(key, args.kl_horizon, num_samples)
            self.kl_controller = AdaptiveKLController(args.kl_loss_coef, args.kl_target, args.kl_horizon)

    @step(reads={"tokens", "attention_mask", "response_mask", "logprobs"}, writes={"old_logprobs"}, borrows=True)
    @torch.no_grad()
    def forward_step(self, data: Batch) -> Batch:
        """Gives ``old_logprobs``, and nothing else: the log-probabilities of sampled tokens under the weights that are
        about to be trained.
        """
        args, window = self.model_args, Window.of(data, self.device)
        with precision(self.device, args.autocast):
            logprobs = policy_logprobs(self.model, window, args.temperature, packing=args.packing)
        mismatch = _Mismatch()
        mismatch.add(logprobs, window.cut(data["logprobs"]), window.mask.bool())
        mismatch.log(self)
        return {"old_logprobs": window.spread(logprobs, data["tokens"].shape[1])}

    @step(borrows=True)
    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch."""
        args = self.model_args
        for key, why in self._further_reads():
            if key not in data[0]:
                raise DataError(f"{self.name}.train_step: the batch has no {key!r}, but {why}")
        whitens = "returns" in data[0] if args.whiten_advantages is None else args.whiten_advantages
        batches = _with_whitened_advantages(data) if whitens else data
        self._is_updated, self._mismatch = False, _Mismatch()
        self._seen_kl = torch.zeros(2, device=self.device)
        run_updates(
            self,
            batches,
            train_info["iteration"],
            self._sums,
            aggregation=args.aggregation_used,
            max_length=args.max_length,
            after_update=self._note_update,
        )
        if "old_logprobs" not in data[0]:
            self._mismatch.log(self)
        if args.kl_target is not None:
            kl, num_tokens = map(float, self.all_reduce(self._seen_kl))
            self.log("kl_coef", self.kl_controller.coef)
            if num_tokens:
                self.kl_controller.update(kl / num_tokens, sum(len(batch["response_mask"]) for batch in data))

    def _further_reads(self) -> list[tuple[str, str]]:
        """Keys that the configuration makes necessary, and why."""
        args = self.model_args
        found: list[tuple[str, str]] = []
        section = f"models.{self.name}.args"
        if args.kl_loss_coef:
            fix = "Give the engine a reference, or set the weight to 0."
            found.append(("ref_logprobs", f"{section}.kl_loss_coef is {args.kl_loss_coef}. {fix}"))
        if args.importance_level is not None:
            fix = "This module's forward_step adds them in the environment: GRPOEngine(…, recompute_logprobs=True)."
            found.append(("old_logprobs", f"{section}.importance_level is {args.importance_level}. {fix}"))
        return found

    def _sums(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch before normalisation, and sums over its tokens of what is logged."""
        args, window = self.model_args, Window.of(batch, self.device)
        valid = window.mask.bool()
        entropy: Tensor | None = None
        if args.entropy_coef:
            logprobs, entropy = policy_logprobs_and_entropy(self.model, window, args.temperature, packing=args.packing)
        else:
            logprobs = policy_logprobs(self.model, window, args.temperature, packing=args.packing)
        sampled = window.cut(batch["logprobs"])
        old = window.cut(batch["old_logprobs"]) if "old_logprobs" in batch else sampled
        if not self._is_updated and "old_logprobs" not in batch:
            self._mismatch.add(logprobs.detach(), sampled, valid)
        weights = self._importance(old, sampled, window.mask)
        loss, metrics = self._loss(logprobs, old, window.cut(batch["advantages"]), window.mask, weights)
        if weights is not None:
            metrics["importance_weight"] = weights
        if args.kl_loss_coef:
            kl = kl_estimate(logprobs, window.cut(batch["ref_logprobs"]), args.kl_estimator)
            metrics["kl"] = torch.where(valid, kl.detach(), 0)
            self._seen_kl += torch.stack([metrics["kl"].sum(), valid.sum()])
            loss = loss + (self.kl_controller.coef if args.kl_target is not None else args.kl_loss_coef) * kl
        if entropy is not None:
            metrics["entropy"] = torch.where(valid, entropy.detach(), 0)
            loss = loss - args.entropy_coef * entropy
        total = aggregate_sum(loss, window.mask, args.aggregation_used)
        return total, {name: value.sum() for name, value in metrics.items()}

    def _loss(
        self, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None
    ) -> LossAndMetrics:
        """The configured objective, per token."""
        args = self.model_args
        if args.loss == "sapo":
            return sapo_loss_per_token(
                logprobs, old, advantages, mask, tau_pos=args.tau_pos, tau_neg=args.tau_neg, weights=weights
            )
        low, high = {"ppo": (0.2, 0.2), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}[args.loss]
        low = low if args.clip_low is None else args.clip_low
        high = high if args.clip_high is None else args.clip_high
        if args.loss == "ppo":
            return policy_loss_per_token(
                logprobs,
                old,
                advantages,
                mask,
                clip_low=low,
                clip_high=high,
                dual_clip=args.dual_clip,
                weights=weights,
            )
        loss = gspo_loss_per_token if args.loss == "gspo" else cispo_loss_per_token
        return loss(logprobs, old, advantages, mask, clip_low=low, clip_high=high, weights=weights)

    def _importance(self, old: Tensor, sampled: Tensor, mask: Tensor) -> Tensor | None:
        args = self.model_args
        if args.importance_level is None:
            return None
        return importance_weights(
            old, sampled, mask, level=args.importance_level, mode=args.importance_mode, cap=args.importance_cap
        )

    def _note_update(self) -> None:
        self._is_updated = True


class _Mismatch:
    """How far a trainer's log-probabilities are from the sampler's, of the tokens that the sampler drew."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, trainer: Tensor, sampler: Tensor, valid: Tensor) -> None:
        """Takes in some rows ``[B, T]``."""
        gap = torch.where(valid, sampler - trainer, 0)
        k3 = kl_estimate(gap, torch.zeros_like(gap), "k3")
        self._parts.append(torch.stack([k3.sum(), valid.sum(), gap.abs().amax()]))

    def log(self, module: PolicyTrainer) -> None:
        """Logs it as metrics of a module."""
        parts = torch.stack(self._parts)
        kl, num_tokens = module.all_reduce(parts[:, :2].sum(0)).unbind()
        module.log("mismatch_kl", kl / num_tokens.clamp(min=1))
        module.log("mismatch_max", parts[:, 2].amax(), "max")


def _with_whitened_advantages(data: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of one global batch, their advantages whitened over all of it."""
    advantages = torch.cat([batch["advantages"] for batch in data])
    whitened = masked_whiten(advantages, torch.cat([batch["response_mask"] for batch in data]))
    pieces = torch.split(whitened, [len(batch["advantages"]) for batch in data])
    return [{**batch, "advantages": piece} for batch, piece in zip(data, pieces, strict=True)]
