"""Tiny folders of sequence classification models, and their scores without anything of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import make_tokenizer

KINDS = ("llama", "gpt2", "qwen2", "bert")

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}_{{ m['content'] }}_{% endfor %}"
    "{% if add_generation_prompt %}a_{% endif %}"
)
"""Renders a user's ``hi`` and an assistant's ``you`` as ``u_hi_a_you_``."""


def make_classifier(kind: str, vocabulary: int, **more: Any) -> Any:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2ForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
        Qwen2Config,
        Qwen2ForSequenceClassification,
    )

    common: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.3, "pad_token_id": 0, "num_labels": 1}
    common |= more
    wide: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(2)
    if kind == "gpt2":
        return GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common))
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**wide, **common))
    wide["num_key_value_heads"] = 2
    if kind == "llama":
        return LlamaForSequenceClassification(LlamaConfig(**wide, **common))
    return Qwen2ForSequenceClassification(Qwen2Config(**wide, **common))


def make_reward_folder(folder: Path, kind: str = "llama", *, template: str | None = None, **config: Any) -> str:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    make_classifier(kind, len(tokenizer), **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_score(folder: str, ids: list[int], label: int = 0) -> float:
    """The score of one sequence without any padding."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, label])


def ids_of(text: str) -> list[int]:
    """Token ids of a text of letters and ``_``, by hand: after the three special tokens."""
    return [3 + "abcdefghijklmnopqrstuvwxyz_".index(letter) for letter in text]


EOS_ID = 1
