"""Form a palindrome of 3 to 6 given letters.

The questions and scores are reasoning-gym's (``palindrome_generation``). The reward is binary: the library gives 0.05
for any palindrome, of whatever letters, and a policy that is paid for it learns to write short ones of its own.
"""

from __future__ import annotations

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

DATASET = "palindrome_generation"
DATASET_CONFIG: dict[str, Any] = {"min_length": 3, "max_length": 6}

NUM_TRAINING_DRAWS = 15_000
NUM_TUNING = 256
NUM_HELD_OUT = 256
NUM_UNSEEN = 128
MAX_RESPONSE_TOKENS = 7
"""Room for six letters and the end-of-sequence token."""

UNSEEN = "letter sets never trained on"

_UNSEEN_SEED = 4_000_000_000
# The demonstrator always masters so many letters, and more of them with this probability.
_MASTERED_LETTERS, _MASTERY = 4, 0.35


def load_splits() -> TaskSplits:
    """Draws the splits. They are always the same, whatever the seed of the run.

    Returns:
        256 distinct questions to tune with and 256 held out, whose letters may come in training in another order;
        apart from them 128 hard ones (5 or 6 letters) whose letters come in no other split, in whatever order; and
        the training split, a little below 15,000 samples.

    Raises:
        DataError: reasoning-gym isn't installed.
    """
    unseen_sets: set[str] = set()
    unseen = distinct(
        (entry for entry in _draws(_UNSEEN_SEED) if len(_letters(entry)) > _MASTERED_LETTERS),
        NUM_UNSEEN,
        _letter_set,
        unseen_sets,
    )
    taken: set[str] = set()
    held_out = distinct(_without(unseen_sets, HELD_OUT_SEED), NUM_HELD_OUT, _letters, taken)
    tuning = distinct(_without(unseen_sets, TUNING_SEED), NUM_TUNING, _letters, taken)
    training = [as_sample(entry) for entry in _without(unseen_sets, TRAINING_SEED) if _letters(entry) not in taken]
    return TaskSplits(training, tuning, held_out, {UNSEEN: unseen})


def imperfect_demonstrations(training: list[Sample], seed: int, num_samples: int) -> list[Sample]:
    """Demonstrations by somebody who masters up to 4 letters, and otherwise gives the letters as they stand, but for
    a share of 0.35; see :func:`~chatlearn.recipes.tasks.base.demonstrated`.
    """
    return demonstrated(
        training,
        seed,
        num_samples,
        is_hard=lambda sample: len(_letters(sample["entry"])) > _MASTERED_LETTERS,
        mistake=lambda sample: _letters(sample["entry"]),
        mastery=_MASTERY,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The task's tokenizer: instruction, letters, the end of the question, ``<sep>``."""
    instruction, end = _constant_parts()
    return character_tokenizer([instruction, end])


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A policy with random weights; see :func:`~chatlearn.recipes.tasks.base.tiny_llama`."""
    return tiny_llama(tokenizer, seed, MAX_RESPONSE_TOKENS + 2)


def reward(
    prompts: list[str], completions: list[str], entry: list[dict[str, Any]], finished: Sequence[bool]
) -> list[float | None]:
    """1 for a palindrome of just these letters, else 0."""
    scores = _scorer()(prompts, completions, entry, finished)
    return [float(score is not None and score >= 0.999) for score in scores]


def raw_reward(
    prompts: list[str], completions: list[str], entry: list[dict[str, Any]], finished: Sequence[bool]
) -> list[float | None]:
    """The library's own score, which can be hacked; see the module's text."""
    return _scorer()(prompts, completions, entry, finished)


def _draws(seed: int) -> Any:
    return draws(DATASET, seed, NUM_TRAINING_DRAWS, **DATASET_CONFIG)


def _without(letter_sets: set[str], seed: int) -> list[dict[str, Any]]:
    return [entry for entry in _draws(seed) if _letter_set(entry) not in letter_sets]


def _letters(entry: dict[str, Any]) -> str:
    return "".join(entry["metadata"]["letters"])


def _letter_set(entry: dict[str, Any]) -> str:
    return "".join(sorted(entry["metadata"]["letters"]))


def _constant_parts() -> tuple[str, str]:
    """What every question begins and ends with."""
    entry = _draws(TRAINING_SEED)[0]
    begin, end = entry["question"].split(", ".join(entry["metadata"]["letters"]))
    return begin, end


@lru_cache(maxsize=1)
def _scorer() -> ReasoningGymReward:
    return ReasoningGymReward(DATASET, **DATASET_CONFIG)
