"""Stop strings: texts that end a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MARGIN_TOKENS = 4
"""Tokens before the longest stop string that are decoded with it: part of a character, or a leading space that some
tokenizers drop at the start of a text, must not hide its first letter."""


class StopStrings:
    """Finds the end of responses that a text ends, not a token.

    Args:
        tokenizer: of Hugging Face format.
        strings: any of them ends a response.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        self._tokenizer, self._strings = tokenizer, tuple(strings)
        self._silent = frozenset(tokenizer.all_special_ids)
        # any other token adds at least a byte to the text
        self._tail = max(len(string.encode()) for string in strings) + _MARGIN_TOKENS

    def ended(self, rows: Sequence[int], responses: Sequence[list[int]]) -> list[bool]:
        """Which responses hold a stop string in their last tokens.

        Args:
            rows: of the batch; which they are makes no difference.
            responses: the tokens of each so far, one more than at the last call.
        """
        tails = [response[-self._tail :] for response in responses]
        for number, tail in enumerate(tails):
            if not self._silent.isdisjoint(tail):
                spoken = [token for token in responses[number] if token not in self._silent]
                tails[number] = spoken[-self._tail :]
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True)
        return [self._end(text) is not None for text in texts]

    def cut(self, response: str) -> str:
        """A response's text before its first stop string."""
        return response[: self._end(response)]

    def _end(self, text: str) -> int | None:
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        return min(places, default=None)
