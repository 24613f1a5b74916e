"""PPO on the demo's task, written by hand for just this task: what the engine is measured against.

One process, one thread: sample 256 answers, score them, take reference log-probabilities and values, compute
advantages, update each network twice. Forward passes and sampling stand in handwritten.py.

    python benchmarks/handwritten_ppo.py --model FOLDER --steps 150 --seed 0 --eval
    python benchmarks/handwritten_ppo.py --random --steps 40          # timing alone needs no warm start

prints one line of JSON (see :func:`run`). CPU-seconds are of the PPO steps, without loading and evaluation.
Shapes: ``B`` samples, ``R`` response tokens.
"""

from __future__ import annotations

import copy
import json
import random
import time
from dataclasses import dataclass
from typing import Any

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
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters, the demo's own. The value network's learning rate is constant."""

    batch_size: int = 256
    num_minibatches: int = 2
    policy_lr: float = 1e-3
    value_lr: float = 2e-3
    warmup_steps: int = 5
    final_lr_share: float = 0.1
    gamma: float = 1.0
    lam: float = 1.0
    kl: float = 0.005
    clip: float = 0.2
    value_clip: float = 0.2
    max_grad_norm: float = 1.0


class Learner:
    """Policy, reference and value network, and the two optimizers."""

    def __init__(self, model: Any, settings: Settings, num_steps: int, seed: int) -> None:
        self.settings, self.num_steps = settings, num_steps
        self.prompt_order = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        value_head = nn.Linear(model.config.hidden_size, 1)
        for parameter in value_head.parameters():
            nn.init.zeros_(parameter)
        self.reference = Llama(copy.deepcopy(model))
        self.critic = Llama(copy.deepcopy(model), value_head)
        self.policy = Llama(model)
        self.policy_optimizer = adamw(self.policy, settings.policy_lr)
        self.value_optimizer = adamw(self.critic, settings.value_lr)

    def step(self, questions: Questions, index: int) -> tuple[float, float]:
        """One PPO step. Returns the mean reward, and the mean KL per token against the reference."""
        settings = self.settings
        rows = self.prompt_order.sample(range(len(questions.prompts)), settings.batch_size)
        rollout, rewards_B = questions.ask(self.policy, rows, self.generator)
        mask_BR = rollout.response_mask
        with torch.no_grad():
            values_BR = self.critic.values(rollout) * mask_BR
            kl_BR = (rollout.logprobs - self.reference.logprobs(rollout)) * mask_BR
        token_rewards_BR = -settings.kl * kl_BR
        token_rewards_BR[torch.arange(len(rows)), mask_BR.sum(1).long() - 1] += rewards_B
        advantages_BR = _gae(token_rewards_BR, values_BR, mask_BR, settings)
        returns_BR, advantages_BR = advantages_BR + values_BR, _whiten(advantages_BR, mask_BR)

        for group in self.policy_optimizer.param_groups:
            group["lr"] = scheduled(
                settings.policy_lr, index, self.num_steps, settings.warmup_steps, settings.final_lr_share
            )
        for part in torch.randperm(len(rows), generator=self.generator).chunk(settings.num_minibatches):
            minibatch = rollout.rows(part)
            self._update_policy(minibatch, advantages_BR[part])
            self._update_value(minibatch, values_BR[part], returns_BR[part])
        return rewards_B.mean().item(), token_mean(kl_BR, mask_BR).item()

    def _update_policy(self, batch: Rollout, advantages_BR: Tensor) -> None:
        settings = self.settings
        ratio_BR = (self.policy.logprobs(batch) - batch.logprobs).exp()
        clipped_BR = ratio_BR.clamp(1 - settings.clip, 1 + settings.clip)
        loss_BR = -torch.minimum(advantages_BR * ratio_BR, advantages_BR * clipped_BR)
        loss = token_mean(loss_BR, batch.response_mask)
        descend(self.policy_optimizer, self.policy, loss, settings.max_grad_norm)

    def _update_value(self, batch: Rollout, old_values_BR: Tensor, returns_BR: Tensor) -> None:
        settings, limit = self.settings, self.settings.value_clip
        values_BR = self.critic.values(batch)
        clipped_BR = old_values_BR + (values_BR - old_values_BR).clamp(-limit, limit)
        loss_BR = 0.5 * torch.maximum((values_BR - returns_BR) ** 2, (clipped_BR - returns_BR) ** 2)
        loss = token_mean(loss_BR, batch.response_mask)
        descend(self.value_optimizer, self.critic, loss, settings.max_grad_norm)


def run(
    model_folder: str | None, steps: int, seed: int, *, evaluate: bool = False, settings: Settings | None = None
) -> dict[str, Any]:
    """Trains with PPO and measures the CPU time of the steps. Sets torch to one thread.

    Args:
        model_folder: the warm start, with the demo's model and tokenizer; ``None`` for random weights.
        steps: PPO steps; the policy's learning rate decays over these.
        seed: of prompts, sampling and minibatches, and of random weights.
        evaluate: also measure greedy accuracy on the held-out words, before and after.
        settings: hyper-parameters.

    Returns:
        ``steps``, ``seed``, ``cpu_seconds_per_step``, ``rewards`` and ``kls`` (one mean per step, KL per token);
        with ``evaluate`` also ``start_accuracy`` and ``final_accuracy``.
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
    rewards, kls = zip(*history, strict=True)
    return result | {"rewards": rewards, "kls": kls}


def _gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, settings: Settings) -> Tensor:
    """Advantages; all inputs are 0 after a response's end."""
    columns = []
    advantage = next_value = torch.zeros(len(rewards_BR))
    for t in reversed(range(rewards_BR.shape[1])):
        delta = rewards_BR[:, t] + settings.gamma * next_value - values_BR[:, t]
        advantage = (delta + settings.gamma * settings.lam * advantage) * mask_BR[:, t]
        next_value = values_BR[:, t]
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def _whiten(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    centered = x_BR - token_mean(x_BR, mask_BR)
    return centered / (token_mean(centered**2, mask_BR) + 1e-8).sqrt() * mask_BR


def main() -> None:
    """Runs from the command line and prints the result as one line of JSON."""
    given = arguments("Hand-written PPO on the demo's task.", default_steps=150)
    print(json.dumps(run(given.model, given.steps, given.seed, evaluate=given.eval)))


if __name__ == "__main__":
    main()
