"""Bad data: data sets of modules, collation, tokens, samplers, batches that do not fit each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, begin, engine_of, module

from chatlearn import DataError, Engine, Environment, Trainer
from chatlearn.data.collate import pad
from chatlearn.data.padding import Padding
from chatlearn.modules.torch.prompts import TokenizedPrompts

CAUSES = Causes()
cause = CAUSES.cause


def built(dataset: Any) -> None:
    """An engine whose module builds this data set; samples come in its order."""
    begin(data_shuffle=False)
    engine_of(module("policy", build_dataset=lambda self, prompts: dataset)).learn()


class Samples(Sequence[Any]):
    """A data set with a collation of its own, or torch's."""

    def __init__(self, samples: Sequence[Any], collate_fn: Any = None) -> None:
        self.samples, self.collate_fn = samples, collate_fn

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]


# -- Data sets of modules ----------------------------------------------------------------------------------------------


@cause(
    DataError,
    says="policy.build_dataset returns NoneType, which has no __getitem__ and __len__",
    at="policy.build_dataset",
    fix="Return a torch.utils.data.Dataset (or any sequence of samples)",
)
def nothing_built() -> None:
    """`build_dataset` returns nothing."""
    built(None)


@cause(
    DataError,
    says="policy.build_dataset returns an empty data set for 3 prompts",
    at="policy.build_dataset",
    fix="Keep at least one",
)
def nothing_kept() -> None:
    """`build_dataset` keeps none of the prompts."""
    built([])


@cause(
    DataError,
    says="can't be read: OSError: the disk is gone",
    at=("policy[0]: samples [0, 1, 2, 0]", "sample 2 of the data set"),
    fix="OSError",
)
def raising_record() -> None:
    """A record of a data set raises an exception."""

    class Images(Samples):
        def __getitem__(self, index: int) -> Any:
            if index == 2:
                raise OSError("the disk is gone")
            return {"x": index}

    built(Images("abc"))


@cause(
    DataError,
    says="the samples of a batch have different keys: answer is not in all of them",
    at=("policy[0]: samples [0, 1, 0, 1]", "number 1 has prompt"),
    fix="Give every record the same keys, None where there is no value",
)
def different_keys() -> None:
    """Records of a data set have different keys."""
    begin(data_shuffle=False)
    engine_of(Echo("policy"), prompts=[{"prompt": "a", "answer": "b"}, {"prompt": "c"}]).learn()


@cause(
    DataError,
    says="collating fails: RuntimeError: stack expects each tensor to be equal size",
    at="policy[0]: samples [0, 1, 2, 0]",
    fix=("Give the data set a `collate_fn`", "chatlearn.data.collate.pad stacks unequal lengths"),
)
def unequal_lengths() -> None:
    """Samples of different lengths meet torch's own collation."""
    built([{"tokens": torch.zeros(length)} for length in (2, 3, 4)])


@cause(
    DataError,
    says="collating gives Tensor, but a batch is a dict",
    at="policy[0]: samples [0, 1, 2, 0]",
    fix='Let __getitem__ return a dict such as {"query": …}',
)
def no_dict() -> None:
    """Samples are plain numbers."""
    built([1.0, 2.0, 3.0])


@cause(
    DataError,
    says="'x' has 1 rows where 4 are expected",
    at="policy[0]: samples [0, 1, 2, 0]",
    fix="every value has one row per sample of the batch",
)
def collation_with_fewer_rows() -> None:
    """A collation returns fewer rows than it got."""
    built(Samples([{"x": 1}, {"x": 2}, {"x": 3}], collate_fn=lambda samples: {"x": torch.zeros(1, 4)}))


@cause(
    DataError,
    says="pad(length=2): a sequence has 3 elements",
    at="policy[0]: samples [0, 1, 2, 0]",
    fix="Cut it first, or raise the length",
)
def too_long_to_pad() -> None:
    """A sequence is longer than it is to be padded to."""

    def collate(samples: Any) -> Any:
        return {"tokens": pad([torch.zeros(length) for length in samples["length"]], length=2)}

    built(Samples([{"length": 1}, {"length": 2}, {"length": 3}], collate_fn=collate))


# -- Tokens of ready-made modules --------------------------------------------------------------------------------------


def tokenized(*prompts: Any, **limits: Any) -> None:
    """An engine whose module makes tokens of prompts, one for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", name_or_path="models/words")
    policy = module("policy", build_dataset=lambda self, prompts: TokenizedPrompts(prompts, words, **limits))
    engine_of(policy, prompts=prompts).learn()


@cause(
    DataError,
    says="1 of 2 prompts have more tokens than max_prompt_tokens = 4",
    at="prompt 1 has 5",
    fix="Raise it, or set `prompt_overflow` to truncate_left, truncate_right or drop",
)
def too_long_prompt() -> None:
    """A prompt has more tokens than it may."""
    tokenized("one two three", "one two three four five", max_tokens=4)


@cause(
    DataError,
    says="all 2 prompts have more than max_prompt_tokens = 1 tokens (from 2 to 3), so none is left",
    at="all 2 prompts",
    fix="Raise max_prompt_tokens, or cut prompts with `prompt_overflow: truncate_left`",
)
def all_prompts_dropped() -> None:
    """All prompts are too long and dropped."""
    tokenized("one two", "one two three", max_tokens=1, overflow="drop")


@cause(
    DataError,
    says='a prompt is a str, or a dict with a str under "prompt" or chat messages under "messages"',
    at="prompt 1",
    fix="got {'question': 'two'}",
)
def no_prompt_in_a_record() -> None:
    """A record holds no prompt."""
    tokenized("one", {"question": "two"})


@cause(DataError, says="the prompt '' gives no tokens", at="the prompt ''", fix="Leave it out, or use a tokenizer that")
def prompt_without_tokens() -> None:
    """A prompt is empty."""
    tokenized("one", "")


@cause(
    DataError,
    says="prompt 0 is a conversation, but the tokenizer of 'models/words' has no chat template",
    at="prompt 0",
    fix="Use a chat model's tokenizer, set `chat_template` in its tokenizer_config.json, or give prompts as text",
)
def no_chat_template() -> None:
    """A prompt is a conversation, and the tokenizer knows no chat."""
    tokenized([{"role": "user", "content": "one"}])


# -- Samplers ----------------------------------------------------------------------------------------------------------


@cause(
    DataError,
    says="gives 3 for group 0",
    at="the sampler beyond",
    fix="an index of the 3 prompts is a whole number from 0 to 2",
)
def index_out_of_range() -> None:
    """A sampler chooses a prompt that isn't there."""

    def beyond(group: int, length: int, seed: int) -> int:
        return length

    engine_of(Echo("policy")).set_sampler(beyond).learn()


@cause(
    DataError,
    says="raises ZeroDivisionError",
    at="the sampler hard_first(group=0, length=3, seed=0)",
    fix="integer modulo by zero",
)
def raising_sampler() -> None:
    """A sampler raises an exception."""

    def hard_first(group: int, length: int, seed: int) -> int:
        return length % group

    engine_of(Echo("policy")).set_sampler(hard_first).learn()


# -- Batches that belong together --------------------------------------------------------------------------------------


def trained_on(step: Callable[[int], dict[str, Any]], **members: Any) -> None:
    """A trainer gets a global batch of two batches: what ``step`` returns for 0 and for 1."""
    policy = module("policy", forward_step=lambda self, data, iteration: step(iteration), **members)
    learner = Echo("learner")
    environment = Environment(lambda batch: policy.forward_step(batch))
    Engine(environment, Trainer(lambda batch: learner.train_step(batch))).set_dataset(["a"]).learn()


TRAINING = "the input of learner[0].train_step (episode 1, epoch 0, global batch 0) can't be put together"


@cause(
    DataError,
    says="batches of one flow have different keys: score is not in all of them",
    at=TRAINING,
    fix="Return the same keys every time, None where there is no value",
)
def different_keys_of_batches() -> None:
    """Batches of one flow have different keys."""
    trained_on(lambda number: {"x": torch.zeros(4), **({"score": torch.zeros(4)} if number else {})})


@cause(
    DataError,
    says="'x' is Tensor and list in batches that belong together",
    at=TRAINING,
    fix="of one kind in all batches",
)
def different_kinds() -> None:
    """A value is a tensor in one batch and a list in another."""
    trained_on(lambda number: {"x": [0.0] * 4 if number else torch.zeros(4)})


@cause(
    DataError,
    says="'x' has [4] and [4, 2] in batches that belong together",
    at=TRAINING,
    fix="Return it with the same number of dimensions every time",
)
def different_dimensions() -> None:
    """A value has more dimensions in one batch than in another."""
    trained_on(lambda number: {"x": torch.zeros(4, 2) if number else torch.zeros(4)})


@cause(
    DataError,
    says="'x' is float32 and datetime64[s] in batches that belong together, and no dtype holds both",
    at=TRAINING,
    fix="Return it with the same dtype every time",
)
def different_dtypes() -> None:
    """A value is a number in one batch and a date in another."""
    trained_on(lambda number: {"x": np.zeros(4, "M8[s]" if number else "f4")})


@cause(
    DataError,
    says="'x' is int64, which can't hold the padding value 0.5",
    at=TRAINING,
    fix="Pad it with a whole number",
)
def fraction_as_padding() -> None:
    """Whole numbers are to be padded with a fraction."""
    trained_on(lambda number: {"x": torch.zeros(4, 2 + number, dtype=torch.int64)}, padding={"x": Padding(0.5)})


@cause(
    DataError,
    says="Padding(side='up')",
    at="policy.add_padding_config('tokens', …)",
    fix="padding goes 'left' or 'right'",
)
def unknown_side() -> None:
    """Padding is to go to an unknown side."""
    engine_of(module("policy", setup=lambda self: self.add_padding_config("tokens", 0, "up"))).learn()
