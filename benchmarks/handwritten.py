"""What the hand-written loops share: a Llama's forward pass, sampling, questions with scores, the descent.

Forward passes and decoding use a Hugging Face Llama's parameters only.
Shapes: ``B`` samples, ``P`` prompt tokens, ``R`` response tokens, ``T = P + R``, ``V`` vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatlearn.recipes.tasks import spell_backward as task


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
        self.width, self.head_size = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.shares_kv = self.num_kv_heads != config.num_attention_heads
        self.epsilon = config.rms_norm_eps
        positions = torch.arange(config.max_position_embeddings)[None]
        self.cos, self.sin = (table[0] for table in self.decoder.rotary_emb(torch.zeros(1), positions))
        # An output layer that is tied to the embeddings isn't listed again.
        head = () if config.tie_word_embeddings or value_head else model.lm_head.parameters()
        self.parameters = [*self.decoder.parameters(), *head, *(value_head.parameters() if value_head else ())]

    def logprobs(self, rollout: Rollout) -> Tensor:
        """Log-probabilities ``[B, R]`` of the response's tokens."""
        logits_BRV = F.linear(self._response_hidden(rollout), self.lm_head.weight)
        return _token_logprobs(logits_BRV, rollout.responses)

    def values(self, rollout: Rollout) -> Tensor:
        """Values ``[B, R]`` of the states in which the response's tokens were chosen."""
        assert self.value_head is not None
        return self.value_head(self._response_hidden(rollout)).squeeze(-1)

    @torch.no_grad()
    def generate(
        self,
        prompts_BP: Tensor,
        pad: int,
        eos: int,
        generator: torch.Generator | None,
        max_new_tokens: int,
        num_answers: int = 1,
    ) -> Rollout:
        """Answers prompts by sampling at temperature 1, or greedily without a generator.

        Each prompt is read once; its answers stand one after another.
        """
        num_prompts, num_prompt_tokens = prompts_BP.shape
        total = num_prompt_tokens + max_new_tokens
        prompt_mask_BP = prompts_BP != pad
        cache = torch.empty(len(self.decoder.layers), 2, num_prompts, self.num_kv_heads, total, self.head_size)
        hidden = self._forward(prompts_BP, *_positions_and_mask(prompt_mask_BP), cache)[:, -1]
        if num_answers > 1:
            cache = cache.repeat_interleave(num_answers, dim=2)
            prompts_BP, prompt_mask_BP, hidden = (
                value.repeat_interleave(num_answers, dim=0) for value in (prompts_BP, prompt_mask_BP, hidden)
            )
        # An ended row goes on with padding that nobody reads, so among new tokens everything is visible.
        visible = F.pad(prompt_mask_BP, (0, max_new_tokens), value=True)[:, None, None]
        position_B = prompt_mask_BP.sum(1) - 1
        ended_B = torch.zeros(len(prompts_BP), dtype=torch.bool)
        tokens, logprobs, live = [], [], []
        for start in range(num_prompt_tokens, total):
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
                F.linear(normed, projection.weight).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            if cache is not None:
                stop = start + tokens_BT.shape[1]
                cache[index, 0, :, :, start:stop], cache[index, 1, :, :, start:stop] = key, value
                key, value = cache[index, :, :, :, :stop]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=self.shares_kv)
            x = x + F.linear(attended.transpose(1, 2).flatten(2), attention.o_proj.weight)
            normed = self._norm(x, layer.post_attention_layernorm)
            gated = F.silu(F.linear(normed, mlp.gate_proj.weight)) * F.linear(normed, mlp.up_proj.weight)
            x = x + F.linear(gated, mlp.down_proj.weight)
        return self._norm(x, self.decoder.norm)

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, (self.width,), norm.weight, self.epsilon)


class Questions:
    """One split of a task, encoded once, with what it takes to score answers.

    Args:
        samples: with ``prompt`` and the columns that the reward takes.
        tokenizer: pads on the left.
        reward: ``fn(prompts, completions, *, finished, **columns)``.
        max_new_tokens: of an answer.
        separator: stands between tokens in an answer's text.
    """

    def __init__(
        self,
        samples: Sequence[dict[str, Any]],
        tokenizer: Any,
        reward: Callable[..., list[float | None]],
        max_new_tokens: int,
        separator: str = "",
    ) -> None:
        self.prompts = [sample["prompt"] for sample in samples]
        self.columns = {key: [sample[key] for sample in samples] for key in samples[0] if key != "prompt"}
        self.tokens = tokenizer(self.prompts, padding=True, return_tensors="pt")["input_ids"]
        self.pad, self.eos, self.reward = tokenizer.pad_token_id, tokenizer.eos_token_id, reward
        self.max_new_tokens, self.separator = max_new_tokens, separator
        # A table of the tokens' texts decodes faster than the tokenizer does.
        self.text = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)

    def ask(
        self, model: Llama, rows: list[int], generator: torch.Generator | None, num_answers: int = 1
    ) -> tuple[Rollout, Tensor]:
        """Answers to some questions, and their scores ``[B]``; the answers to a question stand one after another."""
        prompts_BP = self.tokens[rows]
        rollout = model.generate(prompts_BP, self.pad, self.eos, generator, self.max_new_tokens, num_answers)
        responses = rollout.responses.tolist()
        answers = [self.separator.join([self.text[token] for token in row if token != self.pad]) for row in responses]
        finished = [self.eos in row for row in responses]
        asked = [row for row in rows for _ in range(num_answers)]
        columns = {name: [column[row] for row in asked] for name, column in self.columns.items()}
        return rollout, torch.tensor(
            self.reward([self.prompts[row] for row in asked], answers, finished=finished, **columns)
        )

    def accuracy(self, model: Llama) -> float:
        """Share of the demo's questions that greedy decoding answers exactly."""
        _, scores_B = self.ask(model, list(range(len(self.prompts))), None)
        return sum(map(task.exact, scores_B.tolist())) / len(self.prompts)


def load(model_folder: str | Path | None, seed: int) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; without one the demo's, with random weights."""
    if model_folder is not None:
        return AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    tokenizer = task.build_tokenizer()
    return task.build_model(tokenizer, seed), tokenizer


def demo_questions(tokenizer: Any) -> tuple[Questions, Questions]:
    """The demo's training and held-out questions."""
    splits = task.load_splits()
    return tuple(
        Questions([{key: sample[key] for key in ("prompt", "entry")} for sample in part], tokenizer, *_SCORING)
        for part in (splits.training, splits.held_out)
    )


def adamw(network: Llama, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of all hand-written loops."""
    return torch.optim.AdamW(network.parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def descend(optimizer: torch.optim.Optimizer, network: Llama, loss: Tensor, max_grad_norm: float) -> None:
    """One update."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters, max_grad_norm)
    optimizer.step()


def scheduled(peak: float, index: int, num_steps: int, warmup_steps: int, final_share: float) -> float:
    """Learning rate of a step: a warm-up, then a linear decay over all steps to a share of the peak."""
    return peak * min(1.0, (index + 1) / warmup_steps) * max(final_share, 1 - (index + 1) / num_steps)


def token_mean(x_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Mean over the response's tokens."""
    return (x_BR * mask_BR).sum() / mask_BR.sum()


def arguments(description: str, default_steps: int) -> argparse.Namespace:
    """Command line of the loops: ``model`` (``None`` for random weights), ``steps``, ``seed``, ``eval``."""
    parser = argparse.ArgumentParser(description=description)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", metavar="FOLDER", help="folder of the warm start")
    start.add_argument("--random", action="store_true", help="start from random weights (for timing)")
    parser.add_argument("--steps", type=int, default=default_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval", action="store_true", help="also measure accuracy on the held-out words")
    return parser.parse_args()


_SCORING = (task.reward, task.MAX_RESPONSE_TOKENS)


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
