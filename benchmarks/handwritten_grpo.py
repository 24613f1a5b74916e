"""GRPO on the demo's task, written by hand for just this task: what the engine and other libraries are held against.

One process, one thread: sample 8 answers to each of 32 questions, score them, compare each with its group, update the
policy twice. Forward passes and sampling stand in handwritten.py.

    python benchmarks/handwritten_grpo.py --model FOLDER --steps 160 --seed 0 --eval
    python benchmarks/handwritten_grpo.py --random --steps 40          # timing alone needs no warm start

prints one line of JSON (see :func:`run`). CPU-seconds are of the GRPO steps, without loading and evaluation.
Shapes: ``B`` samples, ``R`` response tokens, ``N`` prompts, ``G`` answers to each.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from handwritten import (
    Llama,
    Questions,
    Rollout,
    adamw,
    arguments,
    demo_questions,
    descend,
    load,
    scheduled,
    token_mean,
)
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters, the demo's own."""

    num_prompts: int = 32
    group_size: int = 8
    num_minibatches: int = 2
    learning_rate: float = 1e-3
    warmup_steps: int = 5
    final_lr_share: float = 0.1
    clip: float = 0.2
    max_grad_norm: float = 1.0


class Step(NamedTuple):
    """What a step reports."""

    reward: float
    num_tokens: int


class Learner:
    """The policy and its optimizer."""

    def __init__(self, model: Any, settings: Settings, num_steps: int, seed: int) -> None:
        self.settings, self.num_steps = settings, num_steps
        self.prompt_order = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.policy = Llama(model)
        self.optimizer = adamw(self.policy, settings.learning_rate)

    def step(self, questions: Questions, index: int) -> Step:
        """One GRPO step on questions that are drawn at random."""
        rows = self.prompt_order.sample(range(len(questions.prompts)), self.settings.num_prompts)
        return self.step_on(questions, rows, index)

    def step_on(self, questions: Questions, rows: list[int], index: int) -> Step:
        """One GRPO step on the given questions."""
        settings = self.settings
        rollout, rewards_B = questions.ask(self.policy, rows, self.generator, settings.group_size)
        advantages_B = _compared_with_group(rewards_B, settings.group_size)

        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(
                settings.learning_rate, index, self.num_steps, settings.warmup_steps, settings.final_lr_share
            )
        for part in torch.randperm(len(rewards_B), generator=self.generator).chunk(settings.num_minibatches):
            self._update(rollout.rows(part), advantages_B[part, None])
        return Step(rewards_B.mean().item(), int(rollout.response_mask.sum()))

    def _update(self, batch: Rollout, advantages_B1: Tensor) -> None:
        """PPO's clipped objective; the probabilities that an answer was drawn with are the old ones."""
        settings = self.settings
        ratio_BR = (self.policy.logprobs(batch) - batch.logprobs).exp()
        clipped_BR = ratio_BR.clamp(1 - settings.clip, 1 + settings.clip)
        loss_BR = -torch.minimum(advantages_B1 * ratio_BR, advantages_B1 * clipped_BR)
        descend(self.optimizer, self.policy, token_mean(loss_BR, batch.response_mask), settings.max_grad_norm)


def run(
    model_folder: str | None, steps: int, seed: int, *, evaluate: bool = False, settings: Settings | None = None
) -> dict[str, Any]:
    """Trains with GRPO and measures the CPU time of the steps. Sets torch to one thread.

    Args:
        model_folder: the warm start, with the demo's model and tokenizer; ``None`` for random weights.
        steps: GRPO steps; the learning rate decays over these.
        seed: of prompts, sampling and minibatches, and of random weights.
        evaluate: also measure greedy accuracy on the held-out words, before and after.
        settings: hyper-parameters.

    Returns:
        ``steps``, ``seed``, ``cpu_seconds_per_step``, ``tokens_per_step`` (of responses) and ``rewards`` (one mean
        per step); with ``evaluate`` also ``start_accuracy`` and ``final_accuracy``.
    """
    torch.set_num_threads(1)
    model, tokenizer = load(model_folder, seed)
    training, held_out = demo_questions(tokenizer)
    learner = Learner(model, settings or Settings(), steps, seed)

    result: dict[str, Any] = {"steps": steps, "seed": seed}
    if evaluate:
        result["start_accuracy"] = held_out.accuracy(learner.policy)
    start = time.process_time()
    history = [learner.step(training, index) for index in range(steps)]
    result["cpu_seconds_per_step"] = (time.process_time() - start) / steps
    if evaluate:
        result["final_accuracy"] = held_out.accuracy(learner.policy)
    result["tokens_per_step"] = sum(step.num_tokens for step in history) / steps
    return result | {"rewards": [step.reward for step in history]}


def _compared_with_group(rewards_B: Tensor, group_size: int) -> Tensor:
    """Advantages ``[B]``: the rewards of a group, shifted to mean 0 and scaled to standard deviation 1."""
    rewards_NG = rewards_B.view(-1, group_size)
    spread_N1 = rewards_NG.std(1, keepdim=True) + 1e-4
    return ((rewards_NG - rewards_NG.mean(1, keepdim=True)) / spread_N1).flatten()


def main() -> None:
    """Runs from the command line and prints the result as one line of JSON."""
    given = arguments("Hand-written GRPO on the demo's task.", default_steps=160)
    print(json.dumps(run(given.model, given.steps, given.seed, evaluate=given.eval)))


if __name__ == "__main__":
    main()
