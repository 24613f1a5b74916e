"""Training a value model on returns."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from chatlearn.algorithms.losses import aggregate_sum, value_loss_per_token
from chatlearn.modules.base import step
from chatlearn.modules.torch.huggingface import ValueModel, load_causal_lm
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.optimization import TrainArgs, check_num_minibatches, make_optimizer, run_updates
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

    @step(borrows=True)
    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch."""
        run_updates(self, data, train_info["iteration"], self._sums, loss_name="value_loss")

    def _sums(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch before normalisation; nothing else is logged."""
        window = Window.of(batch, self.device)
        errors = value_loss_per_token(
            state_values(self.model, window, packing=self.model_args.packing),
            window.cut(batch["values"]),
            window.cut(batch["returns"]),
            window.mask,
            clip=self.model_args.value_clip,
        )
        return aggregate_sum(errors, window.mask, "token_mean"), {}
