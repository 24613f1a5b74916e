"""Chat messages as text, by a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from chatlearn.errors import DataError
from chatlearn.guards import is_mapping, is_sequence


def is_conversation(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """A list of dicts: chat messages, right or wrong, and not a text."""
    return is_sequence(value) and bool(value) and all(is_mapping(message) for message in value)


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], place: str) -> str:
    """The text of a conversation up to where the model answers.

    It holds the template's special tokens, so it is to be tokenized with ``add_special_tokens=False``.

    Args:
        tokenizer: of Hugging Face format, with a chat template.
        messages: dicts with ``role`` and ``content``; the last one is not the assistant's.
        place: whose they are, for errors.

    Raises:
        DataError: the tokenizer has no template, a message is malformed, or the template refuses the conversation.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"{place} is a conversation, but the tokenizer of {tokenizer.name_or_path!r} has no chat template. Use a "
            f"chat model's tokenizer, set `chat_template` in its tokenizer_config.json, or give prompts as text."
        )
    check_messages(messages, place)
    if messages[-1]["role"] == "assistant":
        raise DataError(
            f"{place}: the last message is the assistant's, so there is nothing to answer. Leave it out; as a "
            f"demonstration it belongs to supervised fine-tuning."
        )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise DataError(f"{place}: the tokenizer's chat template refuses the conversation: {error}") from error


def check_messages(messages: Sequence[Mapping[str, Any]], place: str) -> None:
    """Every message has a role and a text.

    Raises:
        DataError: one has not; it is named by its number.
    """
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise DataError(
                f'{place}: message {number} is {dict(message)!r}; a message is a dict {{"role": str, "content": str}}.'
            )
