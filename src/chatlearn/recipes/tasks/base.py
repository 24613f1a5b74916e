"""What the tasks share: splits of reasoning-gym's samples, a character tokenizer, a tiny Llama."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from chatlearn.errors import DataError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# pyright: reportUnknownMemberType=false
# reasoning-gym, tokenizers and torch leave some types open.

Sample: TypeAlias = dict[str, Any]

PAD, EOS, SEP, UNKNOWN = "<pad>", "<eos>", "<sep>", "<unk>"

# reasoning-gym draws item i with Random(seed + i), so splits need seeds further apart than any split is long.
HELD_OUT_SEED, TUNING_SEED, TRAINING_SEED = 1_000_000_000, 2_000_000_000, 3_000_000_000


@dataclass(frozen=True, slots=True)
class TaskSplits:
    """A task's samples in splits that share none.

    Attributes:
        training: draws with their natural frequencies, so a sample may come several times.
        tuning: for choosing settings.
        held_out: for the reported accuracy and nothing else.
        further: held-out samples that are reported apart, by name.
    """

    training: list[Sample]
    tuning: list[Sample]
    held_out: list[Sample]
    further: dict[str, list[Sample]] = field(default_factory=dict[str, "list[Sample]"])


class Task(Protocol):
    """A module of this package."""

    def load_splits(self) -> TaskSplits:
        """The same splits for every run."""
        ...

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """A character tokenizer that knows the question's constant words as single tokens."""
        ...

    def build_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
        """A small model with random weights."""
        ...

    def imperfect_demonstrations(self, training: list[Sample], seed: int, num_samples: int) -> list[Sample]:
        """Samples ``{"prompt": …, "response": …}`` of a demonstrator who errs."""
        ...


def load_task(name: str) -> Task:
    """The task of a name: a module of this package, or with a dot in the name any module with these functions.

    Raises:
        DataError: there is none.
    """
    path = name if "." in name else f"chatlearn.recipes.tasks.{name}"
    try:
        return cast(Task, importlib.import_module(path))
    except ModuleNotFoundError as error:
        raise DataError(
            f"models.warm_start.args.task: there is no task {name!r} ({error}). Ready-made are spell_backward and "
            f"palindrome; a module of your own is named with its package."
        ) from error


def draws(dataset: str, seed: int, size: int, **config: Any) -> Any:
    """Items of a reasoning-gym data set.

    Raises:
        DataError: reasoning-gym isn't installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(
            f"the task needs reasoning-gym, which can't be imported ({error}). Install it: pip install "
            "'chatlearn[demo]'"
        ) from error
    return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **config)


def as_sample(entry: dict[str, Any]) -> Sample:
    """A sample of a reasoning-gym item: ``prompt``, ``answer`` and the ``entry`` itself, which its scorer takes."""
    return {"prompt": entry["question"], "answer": entry["answer"], "entry": entry}


def distinct(entries: Any, num_samples: int, key: Callable[[dict[str, Any]], str], taken: set[str]) -> list[Sample]:
    """The first samples whose keys aren't in ``taken``, which gets them."""
    samples: list[Sample] = []
    for entry in entries:
        if key(entry) not in taken:
            taken.add(key(entry))
            samples.append(as_sample(entry))
        if len(samples) == num_samples:
            break
    return samples


def demonstrated(
    training: list[Sample],
    seed: int,
    num_samples: int,
    *,
    is_hard: Callable[[Sample], bool],
    mistake: Callable[[Sample], str],
    mastery: float,
) -> list[Sample]:
    """Demonstrations by somebody who masters what is easy, and what is hard with probability ``mastery`` only.

    Samples are drawn with replacement, and the coin is tossed anew for each draw, so that a hard one that comes
    several times is shown both ways.

    Args:
        training: the training split.
        seed: of the draws and of the coins, which have a generator of their own.
        num_samples: how many.
        is_hard: of a sample.
        mistake: what is answered instead of the right answer.
        mastery: probability of the right answer to a hard one.

    Returns:
        Samples ``{"prompt": question, "response": what the demonstrator answers}`` in random order.
    """
    generator = random.Random(seed)
    shown: list[Sample] = []
    for sample in generator.choices(training, k=num_samples):
        right = not is_hard(sample) or generator.random() < mastery
        shown.append({"prompt": sample["prompt"], "response": sample["answer"] if right else mistake(sample)})
    return shown


def character_tokenizer(constant_parts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per character, one for each constant part of the questions, ``<sep>`` after a prompt.

    ``tokenizer(question)`` gives the whole prompt, ``<sep>`` at its end. Answers are encoded with
    ``add_special_tokens=False``, and whoever trains on them appends ``eos_token_id``. Batches are padded on the left.

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
    # Text, not special tokens: decoding a prompt gives the question back.
    backend.add_tokens([AddedToken(part, normalized=False) for part in constant_parts])
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


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int, max_new_tokens: int) -> LlamaForCausalLM:
    """A Llama of 113k parameters with random weights, float32, tied embeddings.

    Its generation config makes plain ``model.generate(**tokenizer(question, return_tensors="pt"))`` answer
    greedily and stop at the end of the answer.

    Args:
        tokenizer: gives the vocabulary and the ids of padding and end of sequence.
        seed: of the weights; torch's global generator is left as it is.
        max_new_tokens: of that generation config.

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
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=pad
    )
    return model
