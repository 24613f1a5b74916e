"""Models of several families, and a sampler that is nothing but a loop: one sequence, no cache, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 30
EOS, PAD = 1, 0
MAX_NEW_TOKENS = 12

Row = tuple[list[int], list[float], bool]
"""Tokens, their log-probabilities, and whether the response ended by itself."""

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
}


def make_model(family: str) -> Any:
    """Two layers of width 32, with weights large enough for distributions that are far from uniform."""
    import transformers as hf

    torch.manual_seed(1)
    own = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "pad_token_id": PAD, "eos_token_id": EOS}
    makers = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES)),
        "llama-eager": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, attn_implementation="eager")),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_SIZES)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SIZES, head_dim=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **own)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **own)),
        "mistral-sliding": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SIZES, sliding_window=4)),
        "gemma3-mixed": lambda: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(
                **_SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        "lfm2-convolution": lambda: hf.Lfm2ForCausalLM(
            hf.Lfm2Config(**_SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
        ),
    }
    return makers[family]().eval()


def left_padded(prompts: Sequence[Sequence[int]], pad: int = PAD) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, P]`` int64."""
    width = max(map(len, prompts))
    return (
        torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
        torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
    )


def random_prompts(count: int, group: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to 9 tokens, each ``group`` times."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: tuple[int, ...] = ()) -> Any:
        return torch.randint(low, high, size, generator=generator).tolist()

    return [prompt for _ in range(count) for prompt in [draw(2, VOCABULARY, (draw(1, 10),))] * group]


@torch.no_grad()
def plain_sample(
    model: Any,
    prompt: list[int],
    noise: Tensor | None,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    processors: Any = None,
    ends: Sequence[int] = (EOS,),
) -> Row:
    """Samples one response, with a full forward for each token.

    Args:
        model: of transformers.
        prompt: its tokens.
        noise: ``[max_new_tokens]``; ``None`` for greedy decoding.
        max_new_tokens: the most tokens.
        processors: transformers' ``LogitsProcessorList``.
        ends: tokens that end a response.
    """
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in ends):
        ids = torch.tensor([prompt + tokens])
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        if processors is not None:
            logits = processors(ids, logits.float())
        probs = logits[0].double().softmax(-1)
        if noise is None:
            token = int(probs.argmax())
        else:
            token = int((probs.cumsum(0) <= float(noise[len(tokens)])).sum())
        tokens.append(token)
        logprobs.append(float(probs[token].log()))
    return tokens, logprobs, tokens[-1] in ends


def rows_of(responses: Any) -> list[Row]:
    """What a sampler gave, row by row; checks what padding holds."""
    rows: list[Row] = []
    for tokens, mask, logprobs, finished in zip(
        responses.tokens, responses.mask.bool(), responses.logprobs, responses.finished, strict=True
    ):
        length = int(mask.sum())
        assert mask[:length].all(), "a response has no gaps"
        assert (tokens[length:] == PAD).all()
        assert (logprobs[length:] == 0).all()
        rows.append((tokens[:length].tolist(), logprobs[:length].tolist(), bool(finished)))
    assert responses.tokens.shape[1] == max(len(tokens) for tokens, _, _ in rows), "no column is all padding"
    return rows


def assert_same(got: list[Row], expected: list[Row]) -> None:
    """Equal tokens and ends, and log-probabilities within 1e-5."""
    for number, (ours, plain) in enumerate(zip(got, expected, strict=True)):
        assert ours[0] == plain[0], f"row {number}"
        assert ours[2] == plain[2], f"row {number}"
        torch.testing.assert_close(torch.tensor(ours[1]), torch.tensor(plain[1]), atol=1e-5, rtol=1e-5)
