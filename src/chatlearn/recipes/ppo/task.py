"""The demo's task: spell a word of 3 to 7 letters backward, with a character tokenizer and a tiny Llama.

The words, questions and scores are reasoning-gym's (``spell_backward``). Samples are dicts with ``prompt``
(the question as raw text), ``answer`` and ``entry`` (the library's own item, which its scorer takes).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from chatlearn.errors import DataError
from chatlearn.rewards.reasoning_gym import ReasoningGymReward

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# pyright: reportUnknownMemberType=false
# reasoning-gym, tokenizers and torch leave some types open.

Sample: TypeAlias = dict[str, Any]

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

PAD, EOS, SEP, UNKNOWN = "<pad>", "<eos>", "<sep>", "<unk>"

# reasoning-gym draws item i with Random(seed + i), so splits need seeds further apart than any split is long.
_HELD_OUT_SEED, _TUNING_SEED, _TRAINING_SEED = 1_000_000_000, 2_000_000_000, 3_000_000_000
# The demonstrator always masters words up to this length, and longer ones with this probability.
_MASTERED_LETTERS, _MASTERY = 5, 0.35


@dataclass(frozen=True, slots=True)
class TaskSplits:
    """The task's samples in three splits; no word is in two of them, in whatever case.

    Attributes:
        training: draws with their natural frequencies, so a word may come several times.
        tuning: 256 distinct words, for choosing settings.
        held_out: 256 distinct words, for the reported accuracy and nothing else.
    """

    training: list[Sample]
    tuning: list[Sample]
    held_out: list[Sample]


def load_splits() -> TaskSplits:
    """Draws the three splits. They are always the same, whatever the seed of the run.

    Returns:
        The splits: the training split a little below 30,000 samples, since draws of the other splits'
        words are left out.

    Raises:
        DataError: reasoning-gym isn't installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(
            f"the demo's task needs reasoning-gym, which can't be imported ({error}). "
            "Install it: pip install 'chatlearn[demo]'"
        ) from error

    def draws(seed: int, size: int) -> Any:
        return reasoning_gym.create_dataset(DATASET, seed=seed, size=size, **DATASET_CONFIG)

    taken: set[str] = set()
    held_out = _distinct_words(draws(_HELD_OUT_SEED, NUM_TRAINING_DRAWS), NUM_HELD_OUT, taken)
    tuning = _distinct_words(draws(_TUNING_SEED, NUM_TRAINING_DRAWS), NUM_TUNING, taken)
    training = draws(_TRAINING_SEED, NUM_TRAINING_DRAWS)
    return TaskSplits(
        training=[_sample(entry) for entry in training if _word(entry).lower() not in taken],
        tuning=tuning,
        held_out=held_out,
    )


def exact(score: float) -> bool:
    """Whether a score of the library counts as an exact match; accuracy is the share of these."""
    return score >= 0.999


def imperfect_demonstrations(training: list[Sample], seed: int, num_samples: int = NUM_DEMONSTRATIONS) -> list[Sample]:
    """Demonstrations for the warm start, by a demonstrator who often errs on long words.

    Words of up to 5 letters are reversed. A longer one is reversed with probability 0.35 and otherwise copied
    as it stands. So the warm start knows the task, yet leaves most of the way to reinforcement learning: to
    stop copying, and to become reliable.

    Words are drawn with replacement, and the coin is tossed anew for each draw, so that a long word that
    comes several times is shown both ways.

    Args:
        training: the training split.
        seed: of the draws and of the coins, which have a generator of their own.
        num_samples: how many; the default is one for each sample of the warm start's 700 steps.

    Returns:
        Samples ``{"prompt": question, "response": what the demonstrator answers}`` in random order.
    """
    generator = random.Random(seed)
    demonstrations: list[Sample] = []
    for sample in generator.choices(training, k=num_samples):
        word, answer = _word(sample["entry"]), sample["answer"]
        mastered = len(word) <= _MASTERED_LETTERS or generator.random() < _MASTERY
        demonstrations.append({"prompt": sample["prompt"], "response": answer if mastered else word})
    return demonstrations


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer: one token per character, one for the instruction, ``<sep>`` after a prompt.

    ``tokenizer(question)`` gives the whole prompt: instruction, letters, ``<sep>``. Answers are encoded with
    ``add_special_tokens=False``, and whoever trains on them appends ``eos_token_id``. Batches are padded on
    the left.

    Returns:
        A tokenizer that ``AutoTokenizer`` loads again with all of this, after ``save_pretrained``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    printable = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, SEP, UNKNOWN, *printable])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([PAD, EOS, SEP, UNKNOWN])
    # Text, not a special token: decoding a prompt gives the question back.
    backend.add_tokens([AddedToken(INSTRUCTION, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {SEP}", special_tokens=[(SEP, vocabulary[SEP])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Builds the demo's policy with random weights: a Llama of 113k parameters, float32, tied embeddings.

    Its generation config makes plain ``model.generate(**tokenizer(question, return_tensors="pt"))`` answer
    greedily and stop at the end of the answer.

    Args:
        tokenizer: gives the vocabulary and the ids of padding and end of sequence.
        seed: of the weights; torch's global generator is left as it is.

    Returns:
        The model, on the CPU.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    # transformers types the ids more widely than a tokenizer with these tokens has them
    pad, eos = cast(int, tokenizer.pad_token_id), cast(int, tokenizer.eos_token_id)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_RESPONSE_TOKENS + 2,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return model


def _word(entry: dict[str, Any]) -> str:
    return entry["metadata"]["word"]


def _sample(entry: dict[str, Any]) -> Sample:
    return {"prompt": entry["question"], "answer": entry["answer"], "entry": entry}


def _distinct_words(entries: Any, num_samples: int, taken: set[str]) -> list[Sample]:
    """The first samples whose words aren't in ``taken``, which gets them (lower case: scores ignore case)."""
    samples: list[Sample] = []
    for entry in entries:
        if _word(entry).lower() not in taken:
            taken.add(_word(entry).lower())
            samples.append(_sample(entry))
        if len(samples) == num_samples:
            break
    return samples


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


@lru_cache(maxsize=1)
def _scorer() -> ReasoningGymReward:
    return ReasoningGymReward(DATASET, **DATASET_CONFIG)
