"""PPO on the demo's task, written by hand for just this model and task: what the engine is measured against.

One process, one thread: sample 256 answers, score them, take reference log-probabilities and values, compute
advantages, update each network twice. Forward passes and decoding use the Hugging Face model's parameters only.

    python benchmarks/handwritten_ppo.py --model FOLDER --steps 150 --seed 0 --eval
    python benchmarks/handwritten_ppo.py --random --steps 40          # timing alone needs no warm start

prints one line of JSON (see :func:`run`). CPU-seconds are of the PPO steps, without loading and evaluation.
Shapes: ``B`` samples, ``P`` prompt tokens, ``R`` response tokens, ``T = P + R``, ``V`` vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatlearn.recipes.ppo import task
from chatlearn.rewards import ReasoningGymReward


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


@dataclass(frozen=True)
class Rollout:
    """Prompts, left-padded, with sampled responses.

    ``tokens`` and ``attention_mask`` (bool) are ``[B, T]``, ``response_mask`` (float32) and ``logprobs`` ``[B, R]``.
    """

    tokens: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    logprobs: Tensor

    @property
    def responses(self) -> Tensor:
        """The response part of the tokens, ``[B, R]``."""
        return self.tokens[:, -self.response_mask.shape[1] :]

    def rows(self, index: Tensor) -> Rollout:
        """The given samples."""
        return Rollout(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class Llama:
    """Forward passes over the parameters of a Hugging Face Llama; with a head, a value network."""

    def __init__(self, model: Any, value_head: nn.Linear | None = None) -> None:
        config = model.config
        self.decoder, self.lm_head, self.value_head = model.model, model.lm_head, value_head
        self.width, self.num_heads = config.hidden_size, config.num_attention_heads
        self.epsilon = config.rms_norm_eps
        positions = torch.arange(config.max_position_embeddings)[None]
        self.cos, self.sin = (table[0] for table in self.decoder.rotary_emb(torch.zeros(1), positions))
        # The output layer is tied to the embeddings, so it isn't listed again.
        self.parameters = [*self.decoder.parameters(), *(value_head.parameters() if value_head else ())]

    def logprobs(self, rollout: Rollout) -> Tensor:
        """Log-probabilities ``[B, R]`` of the response's tokens."""
        logits_BRV = F.linear(self._response_hidden(rollout), self.lm_head.weight)
        return _token_logprobs(logits_BRV, rollout.responses)

    def values(self, rollout: Rollout) -> Tensor:
        """Values ``[B, R]`` of the states in which the response's tokens were chosen."""
        assert self.value_head is not None
        return self.value_head(self._response_hidden(rollout)).squeeze(-1)

    @torch.no_grad()
    def generate(self, prompts_BP: Tensor, pad: int, eos: int, generator: torch.Generator | None) -> Rollout:
        """Answers prompts by sampling at temperature 1, or greedily without a generator."""
        num_samples, num_prompt = prompts_BP.shape
        total = num_prompt + task.MAX_RESPONSE_TOKENS
        prompt_mask_BP = prompts_BP != pad
        head_size = self.width // self.num_heads
        cache = torch.empty(len(self.decoder.layers), 2, num_samples, self.num_heads, total, head_size)
        hidden = self._forward(prompts_BP, *_positions_and_mask(prompt_mask_BP), cache)[:, -1]
        # An ended row goes on with padding that nobody reads, so among new tokens everything is visible.
        visible = F.pad(prompt_mask_BP, (0, task.MAX_RESPONSE_TOKENS), value=True)[:, None, None]
        position_B = prompt_mask_BP.sum(1) - 1
        ended_B = torch.zeros(num_samples, dtype=torch.bool)
        tokens, logprobs, live = [], [], []
        for start in range(num_prompt, total):
            logits_BV = F.linear(hidden, self.lm_head.weight)
            token_B = _choose(logits_BV, generator)
            logprobs.append(_token_logprobs(logits_BV, token_B))
            live.append(~ended_B)
            tokens.append(token_B.masked_fill(ended_B, pad))
            ended_B = ended_B | (token_B == eos)
            if start + 1 == total or ended_B.all():
                break
            position_B, allowed = position_B + 1, visible[..., : start + 1]
            hidden = self._forward(tokens[-1][:, None], position_B[:, None], allowed, cache, start)[:, 0]
        return Rollout(
            tokens=torch.cat([prompts_BP, torch.stack(tokens, dim=1)], dim=1),
            attention_mask=torch.cat([prompt_mask_BP, torch.stack(live, dim=1)], dim=1),
            response_mask=torch.stack(live, dim=1).float(),
            logprobs=torch.stack(logprobs, dim=1),
        )

    def _response_hidden(self, rollout: Rollout) -> Tensor:
        """Hidden states ``[B, R, width]`` that predict the response; the last token predicts nothing."""
        context = _positions_and_mask(rollout.attention_mask[:, :-1])
        return self._forward(rollout.tokens[:, :-1], *context)[:, -rollout.response_mask.shape[1] :]

    def _forward(
        self, tokens_BT: Tensor, positions_BT: Tensor, allowed: Tensor, cache: Tensor | None = None, start: int = 0
    ) -> Tensor:
        """Final hidden states ``[B, T, width]``; keys and values go into the cache from ``start`` on."""
        cos, sin = self.cos[positions_BT][:, None], self.sin[positions_BT][:, None]
        x = F.embedding(tokens_BT, self.decoder.embed_tokens.weight)
        for index, layer in enumerate(self.decoder.layers):
            attention, mlp, normed = layer.self_attn, layer.mlp, self._norm(x, layer.input_layernorm)
            query, key, value = (
                F.linear(normed, projection.weight).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            if cache is not None:
                stop = start + tokens_BT.shape[1]
                cache[index, 0, :, :, start:stop], cache[index, 1, :, :, start:stop] = key, value
                key, value = cache[index, :, :, :, :stop]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
            x = x + F.linear(attended.transpose(1, 2).flatten(2), attention.o_proj.weight)
            normed = self._norm(x, layer.post_attention_layernorm)
            gated = F.silu(F.linear(normed, mlp.gate_proj.weight)) * F.linear(normed, mlp.up_proj.weight)
            x = x + F.linear(gated, mlp.down_proj.weight)
        return self._norm(x, self.decoder.norm)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, (self.width,), norm.weight, self.epsilon)


class Questions:
    """One split of the task, encoded once, with what it takes to score answers."""

    def __init__(self, samples: list[task.Sample], tokenizer: Any, reward: ReasoningGymReward) -> None:
        self.prompts = [sample["prompt"] for sample in samples]
        self.entries = [sample["entry"] for sample in samples]
        self.tokens = tokenizer(self.prompts, padding=True, return_tensors="pt")["input_ids"]
        self.pad, self.eos, self.reward = tokenizer.pad_token_id, tokenizer.eos_token_id, reward
        # One character per token: a table decodes faster than the tokenizer does.
        self.text = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)

    def ask(self, model: Llama, rows: list[int], generator: torch.Generator | None) -> tuple[Rollout, Tensor]:
        """Answers to some questions, and their scores ``[B]``: 0 for an answer that doesn't end."""
        rollout = model.generate(self.tokens[rows], self.pad, self.eos, generator)
        responses = rollout.responses.tolist()
        answers = ["".join([self.text[token] for token in row]) for row in responses]
        finished = [self.eos in row for row in responses]
        entries = [self.entries[row] for row in rows]
        return rollout, torch.tensor(self.reward([self.prompts[row] for row in rows], answers, entries, finished))

    def accuracy(self, model: Llama) -> float:
        """Share of the questions that greedy decoding answers exactly."""
        _, scores_B = self.ask(model, list(range(len(self.prompts))), None)
        return sum(map(task.exact, scores_B.tolist())) / len(self.prompts)


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
        self.policy_optimizer, self.value_optimizer = (
            torch.optim.AdamW(network.parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
            for network, rate in ((self.policy, settings.policy_lr), (self.critic, settings.value_lr))
        )

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

        self._set_learning_rate(index)
        for part in torch.randperm(len(rows), generator=self.generator).chunk(settings.num_minibatches):
            minibatch = rollout.rows(part)
            self._update_policy(minibatch, advantages_BR[part])
            self._update_value(minibatch, values_BR[part], returns_BR[part])
        return rewards_B.mean().item(), _token_mean(kl_BR, mask_BR).item()

    def _update_policy(self, batch: Rollout, advantages_BR: Tensor) -> None:
        ratio_BR = (self.policy.logprobs(batch) - batch.logprobs).exp()
        clipped_BR = ratio_BR.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        loss_BR = -torch.minimum(advantages_BR * ratio_BR, advantages_BR * clipped_BR)
        self._descend(self.policy_optimizer, self.policy, _token_mean(loss_BR, batch.response_mask))

    def _update_value(self, batch: Rollout, old_values_BR: Tensor, returns_BR: Tensor) -> None:
        limit = self.settings.value_clip
        values_BR = self.critic.values(batch)
        clipped_BR = old_values_BR + (values_BR - old_values_BR).clamp(-limit, limit)
        loss_BR = 0.5 * torch.maximum((values_BR - returns_BR) ** 2, (clipped_BR - returns_BR) ** 2)
        self._descend(self.value_optimizer, self.critic, _token_mean(loss_BR, batch.response_mask))

    def _descend(self, optimizer: torch.optim.Optimizer, network: Llama, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters, self.settings.max_grad_norm)
        optimizer.step()

    def _set_learning_rate(self, index: int) -> None:
        warmup = min(1.0, (index + 1) / self.settings.warmup_steps)
        decay = max(self.settings.final_lr_share, 1 - (index + 1) / self.num_steps)
        for group in self.policy_optimizer.param_groups:
            group["lr"] = self.settings.policy_lr * warmup * decay


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
    if model_folder is None:
        tokenizer = task.build_tokenizer()
        model = task.build_model(tokenizer, seed)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        model = AutoModelForCausalLM.from_pretrained(model_folder)
    splits = task.load_splits()
    reward = ReasoningGymReward(task.DATASET, **task.DATASET_CONFIG)
    training, held_out = (Questions(part, tokenizer, reward) for part in (splits.training, splits.held_out))
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


def _positions_and_mask(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions, and which keys each query sees: itself, and what is real and not after it."""
    itself = torch.eye(mask_BT.shape[1], dtype=torch.bool)  # padding that saw nothing would become NaN
    causal = torch.ones_like(itself).tril()
    return (mask_BT.cumsum(1) - 1).clamp(min=0), (causal & mask_BT[:, None] | itself)[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _choose(logits_BV: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logits_BV.argmax(-1)
    # Gumbel-max: the largest of the logits with Gumbel noise is a sample of the softmax.
    return (logits_BV - torch.empty_like(logits_BV).exponential_(generator=generator).log()).argmax(-1)


def _token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)


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


def _token_mean(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    return (x_BR * mask_BR).sum() / mask_BR.sum()


def _whiten(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    centered = x_BR - _token_mean(x_BR, mask_BR)
    return centered / (_token_mean(centered**2, mask_BR) + 1e-8).sqrt() * mask_BR


def main() -> None:
    """Runs from the command line and prints the result as one line of JSON."""
    parser = argparse.ArgumentParser(description="Hand-written PPO on the demo's task.")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", metavar="FOLDER", help="folder of the warm start")
    start.add_argument("--random", action="store_true", help="start from random weights (for timing)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval", action="store_true", help="also measure accuracy on the held-out words")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.model, arguments.steps, arguments.seed, evaluate=arguments.eval)))


if __name__ == "__main__":
    main()
