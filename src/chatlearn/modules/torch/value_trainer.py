"""Training a value model on returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from chatlearn.algorithms.losses import aggregate_count, aggregate_sum, value_loss_per_token
from chatlearn.modules.torch.huggingface import ValueModel, load_causal_lm
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.optimization import (
    TrainArgs,
    check_num_minibatches,
    learning_rate,
    make_optimizer,
    minibatches,
    num_train_steps,
    set_learning_rate,
    update,
)
from chatlearn.modules.torch.scoring import Window, state_values
from chatlearn.types import Batch


class ValueTrainer(TorchModule):
    """Fits the value model to returns, with the clipped squared error of PPO.

    Takes ``tokens``, ``attention_mask``, ``response_mask``, ``values`` and ``returns``. Logs ``value_loss``,
    ``grad_norm``, ``learning_rate``.
    """

    class Args(TrainArgs):
        """``models.<name>.args``."""

        value_clip: float | None = Field(
            0.2, gt=0, description="values may move this far from those of the rollout; null is no bound"
        )

    reads = frozenset({"tokens", "attention_mask", "response_mask", "values", "returns"})
    writes = frozenset[str]()

    def setup(self) -> None:
        """Loads the backbone, makes head and optimizer."""
        self.model = ValueModel(load_causal_lm(self.model_args, self.device))
        self.optimizer = make_optimizer(self.model, self.model_args)
        check_num_minibatches(self)

    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch."""
        args = self.model_args
        rate = learning_rate(args, train_info["iteration"], num_train_steps(self.runtime_args))
        set_learning_rate(self.optimizer, rate)
        self.log("learning_rate", rate, "max")
        for minibatch in minibatches(data, args.num_minibatches):
            self._update(minibatch)

    def _update(self, minibatch: Sequence[Batch]) -> None:
        args = self.model_args
        counts = [aggregate_count(batch["response_mask"], "token_mean") for batch in minibatch]
        count = self.all_reduce(torch.stack(counts).sum()).clamp(min=1).to(self.device)
        total = torch.zeros((), device=self.device)
        for batch in minibatch:
            window = Window.of(batch, self.device)
            errors = value_loss_per_token(
                state_values(self.model, window),
                window.cut(batch["values"]),
                window.cut(batch["returns"]),
                window.mask,
                clip=args.value_clip,
            )
            loss = aggregate_sum(errors, window.mask, "token_mean") / count
            loss.backward()
            total += loss.detach()
        self.log("value_loss", self.all_reduce(total))
        self.log("grad_norm", update(self.model, self.optimizer, args.max_grad_norm))
