"""Prompts and completions as the tokens that a reward model reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import Embedding, Module

from chatlearn.errors import DataError
from chatlearn.modules.torch.chat import check_messages


@dataclass(frozen=True)
class Exchange:
    """A prompt and what was answered.

    Attributes:
        prompt: the text.
        completion: the answer's text.
        messages: the conversation that the prompt comes from, without the answer; ``None`` for a text.
        ended: the completion ended by itself, not at a length limit.
        place: whose it is, for errors.
    """

    prompt: str
    completion: str
    messages: Sequence[Mapping[str, Any]] | None = None
    ended: bool = True
    place: str = "the sample"


def encode(tokenizer: Any, exchanges: Sequence[Exchange], max_tokens: int | None, append_eos: bool) -> list[list[int]]:
    """Token ids of each exchange, at most ``max_tokens``.

    A longer one keeps its end: the prompt is cut on its left, and the completion only where it is longer alone. A
    token that begins every text (``bos_token`` or ``cls_token``) stays.

    Args:
        tokenizer: of the reward model.
        exchanges: prompts and completions.
        max_tokens: any number if ``None``.
        append_eos: texts end with the end-of-sequence token, if they have ended.

    Raises:
        DataError: one is malformed or gives no tokens; its place is named.
    """
    with_template = [bool(tokenizer.chat_template) and exchange.messages is not None for exchange in exchanges]
    chats = [_rendered(tokenizer, e) for e, chat in zip(exchanges, with_template, strict=True) if chat]
    texts = [exchange for exchange, chat in zip(exchanges, with_template, strict=True) if not chat]
    from_chats = iter(_tokenized(tokenizer, chats, special=False))
    prompts = iter(_tokenized(tokenizer, [exchange.prompt for exchange in texts], special=True))
    completions = iter(_tokenized(tokenizer, [exchange.completion for exchange in texts], special=False))
    result: list[list[int]] = []
    for exchange, chat in zip(exchanges, with_template, strict=True):
        ids = next(from_chats) if chat else [*next(prompts), *next(completions)]
        if append_eos and exchange.ended and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        if not ids:
            raise DataError(f"{exchange.place}: prompt and completion give no tokens, so there is nothing to score.")
        result.append(_cut(tokenizer, ids, max_tokens))
    return result


def _tokenized(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []


def _rendered(tokenizer: Any, exchange: Exchange) -> str:
    from jinja2 import TemplateError

    assert exchange.messages is not None
    check_messages(exchange.messages, exchange.place)
    try:
        return tokenizer.apply_chat_template(
            [*exchange.messages, {"role": "assistant", "content": exchange.completion}], tokenize=False
        )
    except TemplateError as error:
        raise DataError(
            f"{exchange.place}: the chat template of the reward model's tokenizer refuses the conversation: {error}"
        ) from error


def _cut(tokenizer: Any, ids: list[int], max_tokens: int | None) -> list[int]:
    if max_tokens is None or len(ids) <= max_tokens:
        return ids
    first = ids[:1] if max_tokens > 1 and ids[0] in {tokenizer.bos_token_id, tokenizer.cls_token_id} else []
    return first + ids[len(ids) - max_tokens + len(first) :]


def num_positions(model: Any) -> float:
    """The most tokens that a model has positions for; infinite where there is no such limit.

    Models of RoBERTa's kind give padding a position, and begin to count behind it: of 514 positions 512 are for tokens.
    """
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or limit <= 0:  # XLNet says -1
        return math.inf
    parts: Iterable[tuple[str, Module]] = model.named_modules()
    for name, part in parts:
        if name.endswith(".position_embeddings") and isinstance(part, Embedding) and part.padding_idx is not None:
            limit = min(limit, part.num_embeddings - part.padding_idx - 1)
    return limit


def check_lengths(model: Any, ids: Sequence[Sequence[int]], places: Sequence[str]) -> None:
    """No text is longer than the model has positions.

    Raises:
        DataError: one is; it is named.
    """
    limit = num_positions(model)
    for tokens, place in zip(ids, places, strict=True):
        if len(tokens) > limit:
            raise DataError(
                f"{place}: prompt and completion have {len(tokens)} tokens, but the reward model has positions for "
                f"{limit}. Set `max_tokens: {limit}` beside its model_path, which cuts the prompt on the left."
            )
