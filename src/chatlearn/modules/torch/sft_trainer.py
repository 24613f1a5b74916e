"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from chatlearn.algorithms.losses import aggregate_sum
from chatlearn.modules.base import step
from chatlearn.modules.torch.huggingface import load_causal_lm, load_tokenizer
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.optimization import TrainArgs, check_num_minibatches, make_optimizer, run_updates
from chatlearn.modules.torch.prompts import Demonstrations
from chatlearn.modules.torch.scoring import Window, policy_logprobs
from chatlearn.types import Batch


class SFTTrainer(TorchModule):
    """Fits a language model to demonstrations: the mean negative log-likelihood of response tokens.

    As the only module of ``Engine(None, trainer)`` it builds its own data set from dicts with ``prompt`` (a text or
    chat messages) and ``response``, or from whole conversations. Logs ``loss`` (nats per token), ``grad_norm``,
    ``learning_rate``.
    """

    class Args(TrainArgs):
        """``models.<name>.args``."""

        betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW")

    reads = frozenset({"tokens", "attention_mask", "response_mask"})
    writes = frozenset[str]()

    def setup(self) -> None:
        """Loads model and tokenizer and makes the optimizer."""
        self.model = load_causal_lm(self.model_args, self.device)
        self.tokenizer = load_tokenizer(self.model_args)
        self.optimizer = make_optimizer(self.model, self.model_args)
        check_num_minibatches(self)

    def build_dataset(self, pairs: Sequence[dict[str, Any]]) -> Demonstrations:
        """Pairs of prompt and response, tokenized by the model's own tokenizer."""
        return Demonstrations(pairs, self.tokenizer)

    @step(borrows=True)
    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch."""
        run_updates(self, data, train_info["iteration"], self._sums)

    def _sums(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch before normalisation; nothing else is logged."""
        window = Window.of(batch, self.device)
        logprobs = policy_logprobs(self.model, window, 1.0, packing=self.model_args.packing)
        return -aggregate_sum(logprobs, window.mask, "token_mean"), {}
