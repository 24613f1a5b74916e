"""Training a policy on experience with PPO's clipped objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from chatlearn.algorithms.kl import kl_estimate
from chatlearn.algorithms.losses import aggregate_sum, policy_loss_per_token
from chatlearn.algorithms.masking import masked_whiten
from chatlearn.modules.torch.huggingface import load_causal_lm, load_tokenizer
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.optimization import TrainArgs, check_num_minibatches, make_optimizer, run_updates
from chatlearn.modules.torch.scoring import Window, policy_logprobs
from chatlearn.types import Batch


class PolicyTrainer(TorchModule):
    """Updates the policy with the clipped objective of PPO (Schulman et al. 2017, eq. 7).

    Takes ``tokens``, ``attention_mask``, ``response_mask``, ``logprobs`` and ``advantages``; advantages are whitened
    over the global batch, each loss is normalised over its minibatch, whatever the micro-batches. Logs ``loss``,
    ``clip_frac``, ``approx_kl``, ``grad_norm``, ``learning_rate``.
    """

    class Args(TrainArgs):
        """``models.<name>.args``."""

        temperature: float = Field(1.0, gt=0, description="that the responses were sampled with")
        clip_low: float = Field(0.2, gt=0, lt=1, description="ratios below 1 - clip_low are clipped")
        clip_high: float = Field(0.2, gt=0, description="ratios above 1 + clip_high are clipped")
        dual_clip: float | None = Field(None, gt=1, description="bound on the ratio where the advantage is negative")
        aggregation: Literal["token_mean", "seq_sum_mean", "seq_mean_mean"] = Field(
            "token_mean", description="of token losses"
        )
        whiten_advantages: bool = Field(True, description="over the global batch")
        kl_loss_coef: float = Field(
            0.0, ge=0, description="weight of the KL to the reference in the loss; needs ref_logprobs"
        )
        kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="estimator of that KL")

    reads = frozenset({"tokens", "attention_mask", "response_mask", "logprobs", "advantages"})
    writes = frozenset[str]()

    def setup(self) -> None:
        """Loads the model and makes the optimizer."""
        self.model = load_causal_lm(self.model_args, self.device)
        self.tokenizer = load_tokenizer(self.model_args)
        self.optimizer = make_optimizer(self.model, self.model_args)
        check_num_minibatches(self)
        if self.model_args.kl_loss_coef:
            self.reads = self.reads | {"ref_logprobs"}

    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch."""
        args = self.model_args
        batches = _with_whitened_advantages(data) if args.whiten_advantages else data
        run_updates(self, batches, train_info["iteration"], self._sums, aggregation=args.aggregation)

    def _sums(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch before normalisation, and sums over its tokens of what is logged."""
        args = self.model_args
        window = Window.of(batch, self.device)
        logprobs = policy_logprobs(self.model, window, args.temperature)
        loss, metrics = policy_loss_per_token(
            logprobs,
            window.cut(batch["logprobs"]),
            window.cut(batch["advantages"]),
            window.mask,
            clip_low=args.clip_low,
            clip_high=args.clip_high,
            dual_clip=args.dual_clip,
        )
        if args.kl_loss_coef:
            kl = kl_estimate(logprobs, window.cut(batch["ref_logprobs"]), args.kl_estimator)
            metrics["kl"] = torch.where(window.mask.bool(), kl.detach(), 0)
            loss = loss + args.kl_loss_coef * kl
        return aggregate_sum(loss, window.mask, args.aggregation), {
            name: value.sum() for name, value in metrics.items()
        }


def _with_whitened_advantages(data: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of one global batch, their advantages whitened over all of it."""
    advantages = torch.cat([batch["advantages"] for batch in data])
    whitened = masked_whiten(advantages, torch.cat([batch["response_mask"] for batch in data]))
    pieces = torch.split(whitened, [len(batch["advantages"]) for batch in data])
    return [{**batch, "advantages": piece} for batch, piece in zip(data, pieces, strict=True)]
