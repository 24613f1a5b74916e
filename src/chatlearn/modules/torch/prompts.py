"""Prompts, texts and conversations, as batches of tokens."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from chatlearn.data.collate import Samples
from chatlearn.data.prompts import read_sample
from chatlearn.errors import DataError
from chatlearn.guards import is_dict
from chatlearn.modules.torch.chat import check_messages, is_conversation, render
from chatlearn.types import Batch

MAX_TOKENIZED_AHEAD = 50_000
"""Larger data sets are tokenized sample by sample, so that they start at once and take no memory."""

_DROP_CHUNK = 1_000

Overflow = Literal["error", "truncate_left", "truncate_right", "drop"]
"""What becomes of a prompt that is too long."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        columns: of its sample; ``prompt`` is the text that is tokenized. ``messages`` is there wherever the tokenizer
            has a chat template: ``None`` beside a text, so that texts and conversations go together.
        rendered: the text comes from a chat template, special tokens included.
        place: whose it is, for errors.
    """

    columns: dict[str, Any]
    rendered: bool
    place: str

    @classmethod
    def of(cls, tokenizer: Any, value: Any, place: str) -> Prompt:
        """Reads what a user gives: a text, chat messages, or a dict with either under ``prompt``, or with messages
        under ``messages``. Messages are rendered by the tokenizer's chat template and stay under ``messages``.

        Raises:
            DataError: it is none of these, or can't be rendered.
        """
        if isinstance(value, str):
            value = {"prompt": value}
        elif is_conversation(value):
            value = {"messages": value}
        if is_dict(value) and isinstance(value.get("prompt"), str):
            return cls({"messages": None, **value} if tokenizer.chat_template else value, False, place)
        messages: Any = _messages_of(value) if is_dict(value) else None
        if not is_conversation(messages):
            raise DataError(
                f'{place}: a prompt is a str, or a dict with a str under "prompt" or chat messages under "messages", '
                f"got {value!r}"
            )
        return cls({**value, "prompt": render(tokenizer, messages, place), "messages": messages}, True, place)

    @classmethod
    def again(cls, tokenizer: Any, value: Any, place: str) -> Prompt:
        """Reads a row of a batch, in which a conversation may have been rendered already, by the same template."""
        prompt = cls.of(tokenizer, value, place)
        messages: Any = prompt.columns.get("messages")
        if prompt.rendered or not is_conversation(messages) or messages[-1].get("role") == "assistant":
            return prompt
        return cls(prompt.columns, render(tokenizer, messages, place) == prompt.columns["prompt"], place)


def _messages_of(value: dict[str, Any]) -> Any:
    prompt = value.get("prompt")
    return value.get("messages") if prompt is None else prompt


class TokenizedPrompts:
    """Prompts, tokenized (see :meth:`Prompt.of` for their forms; other keys of dicts become columns).

    Batches hold ``prompt`` (list of str), the other columns as lists, ``prompt_tokens`` ``[B, P]`` int64, padded on
    the left, and ``prompt_mask`` ``[B, P]`` int64. ``prompt`` is the whole text where tokens are cut.

    Args:
        prompts: a sequence of prompts.
        tokenizer: of Hugging Face format, padding on the left.
        max_tokens: the most tokens of a prompt; any number if ``None``.
        overflow: what becomes of a longer one. ``drop`` tokenizes all prompts first.

    Raises:
        DataError: a prompt can't be read, is malformed or too long (larger data sets than
            :data:`MAX_TOKENIZED_AHEAD` say so when the prompt's turn comes), or all are dropped.
    """

    def __init__(
        self, prompts: Sequence[Any], tokenizer: Any, max_tokens: int | None = None, overflow: Overflow = "error"
    ) -> None:
        self._prompts, self._tokenizer, self._max_tokens = prompts, tokenizer, max_tokens
        self._overflow: Overflow = overflow
        self._known: list[list[int]] | None = None
        self._kept: Sequence[int] | np.ndarray = range(len(prompts))
        if max_tokens is not None and overflow == "drop":
            self._kept = self._short_enough(max_tokens)
        if len(prompts) <= MAX_TOKENIZED_AHEAD:
            self._known = self._tokens(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self._kept[index])
        tokens = self._tokens([number])[0] if self._known is None else self._known[index]
        return {**self._prompt(number).columns, "prompt_tokens": tokens}

    def collate_fn(self, samples: Samples) -> Batch:
        """Pads the tokens of a batch of prompts."""
        columns = samples.columns()
        return {**columns, **padded_prompts(self._tokenizer, columns["prompt_tokens"])}

    def _prompt(self, number: int) -> Prompt:
        place = f"prompt {number}"
        return Prompt.of(self._tokenizer, read_sample(self._prompts, int(number), place), place)

    def _tokens(self, numbers: Sequence[int] | np.ndarray) -> list[list[int]]:
        ids = tokenize(self._tokenizer, [self._prompt(number) for number in numbers])
        return fitted(ids, self._max_tokens, self._overflow, numbers)

    def _short_enough(self, max_tokens: int) -> np.ndarray:
        """Numbers of the prompts that are not dropped."""
        lengths = np.zeros(len(self._prompts), dtype=np.int64)
        for start in range(0, len(lengths), _DROP_CHUNK):
            chunk = range(start, min(start + _DROP_CHUNK, len(lengths)))
            lengths[start : chunk.stop] = [
                len(ids) for ids in tokenize(self._tokenizer, [self._prompt(number) for number in chunk])
            ]
        kept = np.flatnonzero(lengths <= max_tokens)
        if len(kept) == 0:
            raise DataError(
                f"all {len(lengths)} prompts have more than max_prompt_tokens = {max_tokens} tokens (from "
                f"{lengths.min()} to {lengths.max()}), so none is left. Raise max_prompt_tokens, or cut prompts with "
                f"`prompt_overflow: truncate_left`."
            )
        if num_dropped := len(lengths) - len(kept):
            warnings.warn(
                f"{num_dropped} of {len(lengths)} prompts have more than max_prompt_tokens = {max_tokens} tokens and "
                f"are left out (prompt_overflow: drop).",
                stacklevel=4,
            )
        return kept


class Demonstrations:
    """Pairs of ``prompt`` and ``response`` as batches of token fields, the response ended by the end-of-sequence token.

    The prompt is a text or chat messages; a dict with ``messages`` only is a conversation whose last message is the
    assistant's: the response. Batches hold ``prompt``, ``response``, ``tokens``, ``attention_mask`` and
    ``response_mask`` (see :mod:`chatlearn.types`).

    Args:
        pairs: a sequence of dicts.
        tokenizer: of Hugging Face format.
    """

    def __init__(self, pairs: Sequence[Any], tokenizer: Any) -> None:
        self._pairs, self._tokenizer = pairs, tokenizer

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pairs[index]
        conversation: Any = pair.get("messages") if is_dict(pair) and "response" not in pair else pair
        if is_conversation(conversation):
            pair = _last_answer(conversation, f"demonstration {index}")
        if not is_dict(pair) or not isinstance(pair.get("response"), str) or not _has_prompt(pair):
            raise DataError(
                f'a demonstration is a dict {{"prompt": str or messages, "response": str}}, or {{"messages": […]}} '
                f"that ends with the assistant's message, got {pair!r}"
            )
        return pair

    def collate_fn(self, samples: Samples) -> Batch:
        """Tokenizes a batch of pairs."""
        eos, pad_id = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        pairs = zip(samples.names, samples["prompt"], strict=True)
        prompts = [Prompt.of(self._tokenizer, {"prompt": prompt}, name) for name, prompt in pairs]
        answers = self._tokenizer(samples["response"], add_special_tokens=False)["input_ids"]
        questions, question_mask = padded(tokenize(self._tokenizer, prompts), pad_id, side="left")
        responses, response_mask = padded([[*ids, eos] for ids in answers], pad_id, side="right")
        return {
            "prompt": [prompt.columns["prompt"] for prompt in prompts],
            "response": samples["response"],
            "tokens": torch.cat([questions, responses], 1),
            "attention_mask": torch.cat([question_mask, response_mask], 1),
            "response_mask": torch.cat([torch.zeros_like(question_mask), response_mask], 1).float(),
        }


def _has_prompt(pair: dict[str, Any]) -> bool:
    return isinstance(pair.get("prompt"), str) or is_conversation(pair.get("prompt"))


def _last_answer(messages: Sequence[Any], place: str) -> dict[str, Any]:
    check_messages(messages, place)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"{place}: a demonstration is a conversation that ends with the assistant's message.")
    return {"prompt": list(messages[:-1]), "response": messages[-1]["content"]}


def tokenize_batch(tokenizer: Any, data: Batch, max_tokens: int | None = None, overflow: Overflow = "error") -> Batch:
    """A batch of raw prompts (``prompt`` or ``messages``, as another module's data set gives them) with
    ``prompt_tokens`` and ``prompt_mask``; ``prompt`` is the text.

    Raises:
        DataError: there are no prompts, or one is malformed or too long; a batch can't leave rows out, so ``drop`` is
            an error too.
    """
    keys = [key for key in ("prompt", "messages") if data.get(key) is not None]
    if not keys:
        raise DataError(
            f"the batch has no prompts: a text or chat messages under 'prompt', or chat messages under 'messages'. It "
            f"has {', '.join(map(repr, data)) or 'no keys'}. Let the step before return them."
        )
    rows = [dict(zip(keys, values, strict=True)) for values in zip(*(data[key] for key in keys), strict=True)]
    prompts = [Prompt.again(tokenizer, row, f"prompt {i} of the batch") for i, row in enumerate(rows)]
    ids = fitted(tokenize(tokenizer, prompts), max_tokens, overflow, range(len(rows)))
    columns = Samples(prompt.columns for prompt in prompts).columns()
    return {**data, **columns, **padded_prompts(tokenizer, ids)}


def padded_prompts(tokenizer: Any, ids: Sequence[Sequence[int]]) -> Batch:
    """``prompt_tokens`` and ``prompt_mask`` of token ids, padded on the left."""
    tokens, mask = padded(ids, tokenizer.pad_token_id, side="left")
    return {"prompt_tokens": tokens, "prompt_mask": mask}


def fitted(
    ids: list[list[int]], max_tokens: int | None, overflow: Overflow, numbers: Sequence[int] | np.ndarray
) -> list[list[int]]:
    """Token ids of prompts, cut to ``max_tokens`` where they are longer.

    Args:
        ids: of each prompt.
        max_tokens: the most tokens of a prompt; any number if ``None``.
        overflow: ``truncate_left`` keeps the last tokens, ``truncate_right`` the first.
        numbers: of the prompts, for errors.

    Raises:
        DataError: a prompt is longer, and is not to be cut.
    """
    longer = [] if max_tokens is None else [i for i, tokens in enumerate(ids) if len(tokens) > max_tokens]
    if not longer or max_tokens is None:
        return ids
    if overflow == "truncate_left":
        return [tokens[-max_tokens:] for tokens in ids]
    if overflow == "truncate_right":
        return [tokens[:max_tokens] for tokens in ids]
    named = ", ".join(f"prompt {numbers[i]} has {len(ids[i])}" for i in longer[:4])
    advice = (
        "truncate_left or truncate_right (`drop` leaves prompts out where this module builds the data set, but these "
        "come from another module)."
        if overflow == "drop"
        else "truncate_left, truncate_right or drop (which leaves prompts out when the data set is built)."
    )
    raise DataError(
        f"{len(longer)} of {len(ids)} prompts have more tokens than max_prompt_tokens = {max_tokens}: {named}"
        f"{', …' if len(longer) > 4 else ''}. Raise it, or set `prompt_overflow` to {advice}"
    )


def tokenize(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The token ids of each prompt.

    Raises:
        DataError: a prompt has none, so that there is nothing to predict a first token from; its place is named.
    """
    result: list[list[int]] = [[] for _ in prompts]
    for rendered in (False, True):
        places = [place for place, prompt in enumerate(prompts) if prompt.rendered is rendered]
        if places:
            texts = [prompts[place].columns["prompt"] for place in places]
            for place, ids in zip(places, tokenizer(texts, add_special_tokens=not rendered)["input_ids"], strict=True):
                result[place] = ids
    if not all(result):
        empty = next(prompt for prompt, ids in zip(prompts, result, strict=True) if not ids)
        raise DataError(
            f"{empty.place}: the prompt {empty.columns['prompt']!r} gives no tokens, so there is nothing to predict a "
            f"first token from. Leave it out, or use a tokenizer that begins every text with a token."
        )
    return result


def padded(sequences: Sequence[Sequence[int]], value: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of different lengths as one tensor, and which entries are real: both ``[N, longest]`` int64."""
    lengths = np.array([len(sequence) for sequence in sequences])
    columns = np.arange(int(lengths.max(initial=0)))
    mask = columns < lengths[:, None] if side == "right" else columns >= (len(columns) - lengths)[:, None]
    tokens = np.full(mask.shape, value, dtype=np.int64)
    tokens[mask] = np.fromiter(itertools.chain.from_iterable(sequences), dtype=np.int64, count=lengths.sum())
    return torch.as_tensor(tokens, device="cpu"), torch.as_tensor(mask.astype(np.int64), device="cpu")
