"""Tiny model folders, modules around them, and batches of token fields in any padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.functional import log_softmax

from chatlearn.config.schema import RuntimeConfig
from chatlearn.modules.base import BaseModule, ModuleContext
from chatlearn.types import Batch, SampleIds

M = TypeVar("M", bound=BaseModule)

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
"""No space: transformers gives Qwen2 folders a tokenizer class with its own way of splitting at spaces."""
KINDS = ("llama-tied", "gpt2-untied", "qwen2-tied")
PROMPTS = ["a", "hello_you", "the_end_of_it", "xyz"]

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response."""


def make_tokenizer(eos: str | None = EOS, pad: str | None = PAD) -> Any:
    """One token per character; pads on the right, as many tokenizers do when they are loaded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate([PAD, EOS, UNKNOWN, *LETTERS])}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        eos_token=eos,
        pad_token=pad,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def make_model(kind: str, vocabulary: int) -> Any:
    """Two layers of width 32 with weights large enough for distributions that are far from uniform."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    common = {
        "vocab_size": vocabulary,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": not kind.endswith("untied"),
    }
    wide = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(1)
    if kind.startswith("gpt2"):
        # dropout as in the real GPT-2: the modules have to switch it off
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common))
    if kind.startswith("llama"):
        return LlamaForCausalLM(LlamaConfig(**wide, **common))
    return Qwen2ForCausalLM(Qwen2Config(**wide, **common))


def make_folder(folder: Path, kind: str) -> str:
    tokenizer = make_tokenizer()
    make_model(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build(cls: type[M], *arguments: Any, runtime: dict[str, Any] | None = None, seed: int = 0, **args: Any) -> M:
    """A module as a worker has it, after ``setup()``; keywords are its ``models.<name>.args``."""
    module = cls("module", *arguments)
    runtime = {"train_micro_batch_size": 1, "train_global_batch_size": 8, **(runtime or {})}
    module.__dict__["_context"] = ModuleContext(
        model_args=cls.Args(**args) if cls.Args else args, runtime_args=RuntimeConfig(**runtime), seed=seed
    )
    torch.manual_seed(0)
    module.setup()
    return module


def call(module: BaseModule, step: str, data: Any, ids: Sequence[int] | None = None, **more: Any) -> Any:
    """Calls a step as for these samples."""
    count = len(next(iter(data.values()))) if isinstance(data, dict) else 0
    ids = tuple(range(count)) if ids is None else tuple(ids)
    module._context.ids = SampleIds(ids, ids)
    return getattr(module, step)(data, **more)


def logged(module: BaseModule) -> dict[str, list[float]]:
    """What a module has logged since the last time."""
    values: dict[str, list[float]] = {}
    for name, value, _ in module._context.metrics:
        values.setdefault(name, []).append(float(value))
    module._context.metrics.clear()
    return values


def plain_model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def plain_tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def plain_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a response's tokens, from one forward of the whole sequence without any padding."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    steps = log_softmax(logits.double() / temperature, -1)[len(prompt) - 1 : -1]
    return steps[torch.arange(len(response)), torch.tensor(response)]


def rows_of(batch: Batch) -> list[Row]:
    """Prompt and response of each row, without padding."""
    rows = []
    for tokens, attention, response in zip(
        batch["tokens"], batch["attention_mask"].bool(), batch["response_mask"].bool(), strict=True
    ):
        assert (attention | ~response).all(), "a response token is not attended to"
        rows.append((tokens[attention & ~response].tolist(), tokens[response].tolist()))
    return rows


def lay_out(rows: Sequence[Row], padding: str, **columns: Sequence[Sequence[float]]) -> Batch:
    """Token fields of rows.

    Args:
        rows: prompts and responses.
        padding: ``both`` (prompts left, responses right, as rollouts have it), ``left``, ``right`` or ``wide`` (as
            ``both``, with columns of padding on both sides).
        columns: values of each response's tokens, as further ``[B, T]`` tensors.
    """
    extra = 3 if padding == "wide" else 0
    widest_prompt = max(len(p) for p, _ in rows) + extra
    width = max(len(p) + len(r) for p, r in rows)
    if padding in ("both", "wide"):
        width = widest_prompt + max(len(r) for _, r in rows) + extra
    batch: Batch = {
        "tokens": torch.zeros(len(rows), width, dtype=torch.int64),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.int64),
        "response_mask": torch.zeros(len(rows), width),
        **{name: torch.zeros(len(rows), width) for name in columns},
    }
    for i, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        start = {"left": width - length, "right": 0}.get(padding, widest_prompt - len(prompt))
        batch["tokens"][i, start : start + length] = torch.tensor(prompt + response)
        batch["attention_mask"][i, start : start + length] = 1
        batch["response_mask"][i, start + len(prompt) : start + length] = 1
        for name, values in columns.items():
            batch[name][i, start + len(prompt) : start + length] = torch.tensor(values[i])
    return batch


def response_values(batch: Batch, name: str) -> list[torch.Tensor]:
    """The values of each row's response tokens; all others have to be 0."""
    mask = batch["response_mask"].bool()
    assert batch[name].shape == mask.shape
    assert batch[name].dtype == torch.float32
    assert (batch[name][~mask] == 0).all()
    return [values[row] for values, row in zip(batch[name], mask, strict=True)]


def random_rows(count: int, seed: int = 0) -> list[Row]:
    """Prompts of 1 to 6 and responses of 1 to 7 tokens; about half of the responses end by themselves."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: tuple[int, ...] = ()) -> Any:
        return torch.randint(low, high, size, generator=generator).tolist()

    rows = []
    for _ in range(count):
        response = draw(3, 30, (draw(1, 8),))
        rows.append((draw(3, 30, (draw(1, 7),)), [*response[:-1], 1] if draw(0, 2) else response))
    return rows
