"""Tokens per CPU-second of the sampler, divided by those of ``transformers.generate`` on the same prompts.

Both continue the same left-padded prompts with the same Qwen2 model (hidden size 256, 4 layers, vocabulary 1,024,
random weights), drawing from the model's distribution as it is, in this process and on one thread, in turn. ``equal``
lengths: 64 new tokens each. ``uneven``: each sequence ends at a length of its own, drawn between 8 and 256, by a
stopping criterion per row on both sides. No token ends a response by itself, so both make the same number of useful
tokens; that is checked. The sampler gives log-probabilities too, which ``generate`` isn't asked for.

    python benchmarks/rollout.py [--alternations 5] [--batches 1 16 64 256] [--quick]

Prints medians, and the median ratio with its range. Above 1 the sampler is faster.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from chatlearn.modules.noise import uniforms
from chatlearn.modules.torch.generation import sample

VOCABULARY = 1024
EQUAL_TOKENS = 64
UNEVEN_TOKENS = (8, 256)
PROMPT_TOKENS = (8, 24)


@dataclass(frozen=True)
class Workload:
    """Prompts, left-padded, and how many tokens each is to get.

    ``input_ids`` and ``attention_mask`` are ``[B, P]`` int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lengths: list[int]


class EndsAtItsLength(StoppingCriteria):
    """Ends each row at a length of its own."""

    def __init__(self, lengths: list[int], num_prompt: int) -> None:
        self.totals = torch.tensor(lengths) + num_prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return input_ids.shape[1] >= self.totals


def make_model() -> Any:
    """The model: 3.7 million parameters, float32, grouped queries."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).eval()


def make_workload(batch_size: int, kind: str, seed: int) -> Workload:
    """Prompts of 8 to 24 tokens. A batch of one has the mean of the lengths that others are drawn from."""
    generator = random.Random(seed)
    prompts = [
        [generator.randrange(1, VOCABULARY) for _ in range(generator.randint(*PROMPT_TOKENS))]
        for _ in range(batch_size)
    ]
    width = max(map(len, prompts))
    lengths = [generator.randint(*UNEVEN_TOKENS) if kind == "uneven" else EQUAL_TOKENS for _ in prompts]
    if kind == "uneven" and batch_size == 1:
        lengths = [sum(UNEVEN_TOKENS) // 2]
    return Workload(
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        lengths,
    )


def run_ours(model: Any, work: Workload, seed: int) -> tuple[float, int]:
    """CPU-seconds, and the number of tokens made."""
    longest = max(work.lengths)

    def ended(rows: list[int], responses: list[list[int]]) -> list[bool]:
        return [len(response) >= work.lengths[row] for row, response in zip(rows, responses, strict=True)]

    start = time.process_time()
    responses = sample(
        model,
        work.input_ids,
        work.attention_mask,
        max_new_tokens=longest,
        eos_token_ids=(),
        pad_token_id=0,
        noise=uniforms(seed, range(len(work.lengths)), longest),
        ended=ended,
    )
    seconds = time.process_time() - start
    return seconds, int(responses.mask.sum())


def run_transformers(model: Any, work: Workload, seed: int) -> tuple[float, int]:
    """CPU-seconds, and the number of tokens made up to each row's end."""
    longest, num_prompt = max(work.lengths), work.input_ids.shape[1]
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=longest, pad_token_id=0, use_cache=True)
    criteria = StoppingCriteriaList([EndsAtItsLength(work.lengths, num_prompt)])
    torch.manual_seed(seed)
    start = time.process_time()
    output = model.generate(
        work.input_ids, attention_mask=work.attention_mask, generation_config=config, stopping_criteria=criteria
    )
    seconds = time.process_time() - start
    made = output.shape[1] - num_prompt
    return seconds, sum(min(length, made) for length in work.lengths)


def measure(model: Any, batch_size: int, kind: str, alternations: int) -> tuple[list[float], list[float]]:
    """Tokens per CPU-second of each alternation, the sampler's and those of transformers.

    Raises:
        RuntimeError: the two didn't do the same work.
    """
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(alternations + 1):
        work = make_workload(batch_size, kind, number)
        (our_seconds, our_tokens), (their_seconds, their_tokens) = (
            run(model, work, number) for run in (run_ours, run_transformers)
        )
        if not our_tokens == their_tokens == sum(work.lengths):
            raise RuntimeError(
                f"unequal work: {our_tokens} tokens, {their_tokens} by transformers, {sum(work.lengths)} asked for"
            )
        if number:  # the first alternation warms up
            ours.append(our_tokens / our_seconds)
            theirs.append(their_tokens / their_seconds)
    return ours, theirs


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--quick", action="store_true", help="two alternations of batches of 1 and 16")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.alternations, arguments.batches = 2, [1, 16]
    torch.set_num_threads(1)
    model = make_model()
    print("tokens per CPU-second, one thread; medians\n")
    print("| lengths | batch | chatlearn | transformers | ratio | range |")
    print("|---|---|---|---|---|---|")
    for kind in ("equal", "uneven"):
        for batch_size in arguments.batches:
            ours, theirs = measure(model, batch_size, kind, arguments.alternations)
            ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
            middle = [statistics.median(column) for column in (ours, theirs, ratios)]
            print(
                f"| {kind} | {batch_size} | {middle[0]:,.0f} | {middle[1]:,.0f} | **{middle[2]:.2f}** | "
                f"{min(ratios):.2f} to {max(ratios):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
