"""Spell a word of 3 to 7 letters backward.

The words, questions and scores are reasoning-gym's (``spell_backward``). Samples are dicts with ``prompt``
(the question as raw text), ``answer`` and ``entry`` (the library's own item, which its scorer takes).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from chatlearn.recipes.tasks.base import (
    HELD_OUT_SEED,
    TRAINING_SEED,
    TUNING_SEED,
    Sample,
    TaskSplits,
    as_sample,
    character_tokenizer,
    demonstrated,
    distinct,
    draws,
    tiny_llama,
)
from chatlearn.rewards.reasoning_gym import ReasoningGymReward

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DATASET = "spell_backward"
DATASET_CONFIG: dict[str, Any] = {"min_word_len": 3, "max_word_len": 7}
INSTRUCTION = "Spell this word backward (example: sun -> nus): "
"""What every question begins with; one token of the tokenizer."""

NUM_TRAINING_DRAWS = 30_000
NUM_TUNING = 256
NUM_HELD_OUT = 256
MAX_RESPONSE_TOKENS = 8
"""Room for the longest answer, seven letters, and its end-of-sequence token."""
NUM_DEMONSTRATIONS = 700 * 128
"""700 warm-start steps of 128 samples."""

# The demonstrator always masters words up to this length, and longer ones with this probability.
_MASTERED_LETTERS, _MASTERY = 5, 0.35


def load_splits() -> TaskSplits:
    """Draws the three splits. They are always the same, whatever the seed of the run.

    Returns:
        256 distinct words to tune with, 256 held out, and the training split, a little below 30,000 samples, since
        draws of the other splits' words are left out. No word is in two of them, in whatever case.

    Raises:
        DataError: reasoning-gym isn't installed.
    """
    taken: set[str] = set()
    held_out = distinct(_draws(HELD_OUT_SEED), NUM_HELD_OUT, _key, taken)
    tuning = distinct(_draws(TUNING_SEED), NUM_TUNING, _key, taken)
    training = [as_sample(entry) for entry in _draws(TRAINING_SEED) if _key(entry) not in taken]
    return TaskSplits(training, tuning, held_out)


def exact(score: float) -> bool:
    """Whether a score of the library counts as an exact match; accuracy is the share of these."""
    return score >= 0.999


def imperfect_demonstrations(training: list[Sample], seed: int, num_samples: int = NUM_DEMONSTRATIONS) -> list[Sample]:
    """Demonstrations for the warm start, by a demonstrator who often errs on long words.

    Words of up to 5 letters are reversed. A longer one is reversed with probability 0.35 and otherwise copied
    as it stands. So the warm start knows the task, yet leaves most of the way to reinforcement learning: to
    stop copying, and to become reliable.

    Args:
        training: the training split.
        seed: of the draws and of the coins.
        num_samples: how many; the default is one for each sample of the warm start's 700 steps.

    Returns:
        Samples ``{"prompt": question, "response": what the demonstrator answers}`` in random order.
    """
    return demonstrated(
        training,
        seed,
        num_samples,
        is_hard=lambda sample: len(_word(sample["entry"])) > _MASTERED_LETTERS,
        mistake=lambda sample: _word(sample["entry"]),
        mastery=_MASTERY,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The task's tokenizer: instruction, letters, ``<sep>``; see
    :func:`~chatlearn.recipes.tasks.base.character_tokenizer`.
    """
    return character_tokenizer([INSTRUCTION])


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A policy with random weights; see :func:`~chatlearn.recipes.tasks.base.tiny_llama`."""
    return tiny_llama(tokenizer, seed, MAX_RESPONSE_TOKENS + 2)


def reward(
    prompts: list[str], completions: list[str], entry: list[dict[str, Any]], finished: Sequence[bool]
) -> list[float | None]:
    """The library's own score of each answer, in 0 to 1: the share of letters that are right, 1 for an exact match.

    An answer that was cut off at the length limit gets 0.
    """
    return _scorer()(prompts, completions, entry, finished)


def shuffled_reward(
    prompts: list[str], completions: list[str], entry: list[dict[str, Any]], finished: Sequence[bool]
) -> list[float | None]:
    """The same scores, dealt to the wrong samples: a control, with which nothing can be learned.

    The mean over a batch is that of :func:`reward`, so the accuracy of an evaluation is still right.
    """
    scores = reward(prompts, completions, entry, finished)
    random.shuffle(scores)  # chatlearn seeds the global generator before each step
    return scores


def _draws(seed: int) -> Any:
    return draws(DATASET, seed, NUM_TRAINING_DRAWS, **DATASET_CONFIG)


def _word(entry: dict[str, Any]) -> str:
    return entry["metadata"]["word"]


def _key(entry: dict[str, Any]) -> str:
    return _word(entry).lower()  # scores ignore case


@lru_cache(maxsize=1)
def _scorer() -> ReasoningGymReward:
    return ReasoningGymReward(DATASET, **DATASET_CONFIG)
