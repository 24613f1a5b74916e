"""What is trained on to compare GRPO programs: the demo's tiny model, and a larger one with uneven responses.

The larger model has random weights, except that its output layer is set so that a response counts down: its first
token says how many tokens are still to come, and is drawn evenly from a range that the prompt's last word names. So
lengths of 8 to 256 tokens come out of plain sampling, the same for whichever program samples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chatlearn.recipes.tasks import spell_backward


@dataclass(frozen=True)
class Workload:
    """A model, prompts with a reward, and the settings that all programs share.

    Attributes:
        name: for the table.
        folder: of the model and its tokenizer.
        samples: with ``prompt`` and the columns that the reward takes.
        shuffle: whether prompts are drawn at random; else taken in order, which makes all steps equal work.
        reward: ``fn(prompts, completions, *, finished, **columns)``.
        max_new_tokens: of a response.
        separator: between tokens in a response's text.
        learning_rate: peak.
        num_prompts: of a step.
        group_size: responses to each prompt.
        num_updates: optimizer updates on the responses of a step.
        trainer_args: of our policy trainer, beside what is shared.
    """

    name: str
    folder: Path
    samples: Sequence[dict[str, Any]]
    shuffle: bool
    reward: Callable[..., list[float | None]]
    max_new_tokens: int
    separator: str
    learning_rate: float
    num_prompts: int
    group_size: int = 8
    num_updates: int = 2
    trainer_args: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """What the reward takes beside prompts and completions."""
        return ["finished", *(name for name in self.samples[0] if name != "prompt")]

    @property
    def num_responses(self) -> int:
        """Of a step."""
        return self.num_prompts * self.group_size

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.num_prompts} prompts x {self.group_size} responses of up to {self.max_new_tokens} "
            f"tokens, {self.num_updates} updates a step"
        )


def demo(folder: Path, scratch: Path) -> Workload:
    """The demo's task and model, from a warm start or (``folder`` is ``scratch``) with random weights."""
    if folder == scratch:
        tokenizer = spell_backward.build_tokenizer()
        spell_backward.build_model(tokenizer, seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Workload(
        name="demo model (113k parameters)",
        folder=folder,
        samples=[{key: sample[key] for key in ("prompt", "entry")} for sample in spell_backward.load_splits().training],
        shuffle=True,
        reward=spell_backward.reward,
        max_new_tokens=spell_backward.MAX_RESPONSE_TOKENS,
        separator="",
        learning_rate=1e-3,
        num_prompts=32,
        trainer_args={"packing": True},
    )


LENGTHS = {"<short>": (8, 32), "<medium>": (33, 96), "<long>": (97, 176), "<longest>": (177, 256)}
"""Shortest and longest response to a prompt that ends with this word, the end-of-sequence token included."""

_LONGEST = max(longest for _, longest in LENGTHS.values())
_VOCABULARY = 1024


def large(scratch: Path) -> Workload:
    """A Llama of 10 million parameters; each step has two prompts of each range of lengths."""
    tokenizer = _countdown_tokenizer()
    _countdown_model(tokenizer).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    words = [word for word in tokenizer.get_vocab() if word.startswith("w")]
    generator = random.Random(0)
    samples = [
        {"prompt": " ".join([*generator.choices(words, k=generator.randint(16, 48)), ending])}
        for _ in range(256)
        for ending in LENGTHS
    ]
    return Workload(
        name="Llama (10M parameters)",
        folder=scratch,
        samples=samples,
        shuffle=False,
        reward=even_length,
        max_new_tokens=_LONGEST,
        separator=" ",
        learning_rate=1e-6,  # the model is to stay what it is
        num_prompts=8,
        group_size=4,
        trainer_args={"packing": True},
    )


def even_length(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """1 for a response of an even number of words, so that most groups have a signal."""
    return [1.0 - len(completion.split()) % 2 for completion in completions]


def _countdown_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: what ends prompts, numbers that say how many tokens are to come, and other words."""
    words = ["<pad>", "<eos>", "<unk>", *LENGTHS, *(f"n{number}" for number in range(1, _LONGEST))]
    words += [f"w{number}" for number in range(_VOCABULARY - len(words))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _countdown_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights; embeddings of length sqrt(hidden size), so that they outweigh what the layers add to them, and
    an output layer that points from each number's embedding to the number below it.
    """
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        embeddings = torch.randn(_VOCABULARY, config.hidden_size)
        directions = torch.linalg.qr(torch.randn(config.hidden_size, config.hidden_size)).Q
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    # Orthogonal embeddings of what decides, so that no number is taken for another.
    token = tokenizer.convert_tokens_to_ids
    deciding = token([*LENGTHS, *(f"n{number}" for number in range(1, _LONGEST))])
    embeddings[deciding] = directions[: len(deciding)] * config.hidden_size**0.5
    sharpness = 1.5 / config.hidden_size**0.5  # the wanted token's logit is 25 to 30 above the others'
    output = model.lm_head.weight.data
    for number in range(1, _LONGEST):
        below = f"n{number - 1}" if number > 1 else "<eos>"
        output[token(below)] += sharpness * embeddings[token(f"n{number}")]
    for ending, (shortest, longest) in LENGTHS.items():
        first = token([f"n{length - 1}" for length in range(shortest, longest + 1)])
        output[first] += sharpness * embeddings[token(ending)]
    model.model.embed_tokens.weight.data.copy_(embeddings)
    return model
