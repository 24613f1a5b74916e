"""The value model that judges states during rollouts."""

from __future__ import annotations

import torch
from pydantic import Field

from chatlearn.modules.base import step
from chatlearn.modules.torch.huggingface import ModelArgs, ValueModel, load_causal_lm
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.scoring import Window, state_values
from chatlearn.types import Batch


class ValueInference(TorchModule):
    """Adds ``values``, the expected return of the state in which each response token was chosen.

    The model is a language model's backbone with a scalar head, zero at the start.
    """

    class Args(ModelArgs):
        """``models.<name>.args``."""

        packing: bool = Field(False, description="sequences of a batch share lines instead of being padded")

    reads = frozenset({"tokens", "attention_mask", "response_mask"})
    writes = frozenset({"values"})

    def setup(self) -> None:
        """Loads the backbone and makes the head."""
        self.model = ValueModel(load_causal_lm(self.model_args, self.device))

    @step(borrows=True)
    @torch.inference_mode()
    def forward_step(self, data: Batch) -> Batch:
        """Judges the states of a batch."""
        window = Window.of(data, self.device)
        values = state_values(self.model, window, packing=self.model_args.packing)
        return {**data, "values": window.spread(values, data["tokens"].shape[1])}
