"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from chatlearn.algorithms.losses import aggregate_count, aggregate_sum
from chatlearn.modules.torch.huggingface import load_causal_lm, load_tokenizer
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
from chatlearn.modules.torch.prompts import Demonstrations
from chatlearn.modules.torch.scoring import Window, policy_logprobs
from chatlearn.types import Batch


class SFTTrainer(TorchModule):
    """Fits a language model to demonstrations: the mean negative log-likelihood of response tokens.

    As the only module of ``Engine(None, trainer)`` it builds its own data set from dicts with ``prompt`` and
    ``response``. Logs ``loss`` (nats per
    token), ``grad_norm``, ``learning_rate``.
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

    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch."""
        args = self.model_args
        rate = learning_rate(args, train_info["iteration"], num_train_steps(self.runtime_args))
        set_learning_rate(self.optimizer, rate)
        self.log("learning_rate", rate, "max")
        for minibatch in minibatches(data, args.num_minibatches):
            self._update(minibatch)

    def _update(self, minibatch: Sequence[Batch]) -> None:
        counts = [aggregate_count(batch["response_mask"], "token_mean") for batch in minibatch]
        count = self.all_reduce(torch.stack(counts).sum()).clamp(min=1).to(self.device)
        total = torch.zeros((), device=self.device)
        for batch in minibatch:
            window = Window.of(batch, self.device)
            loss = -aggregate_sum(policy_logprobs(self.model, window, 1.0), window.mask, "token_mean") / count
            loss.backward()
            total += loss.detach()
        self.log("loss", self.all_reduce(total))
        self.log("grad_norm", update(self.model, self.optimizer, self.model_args.max_grad_norm))
