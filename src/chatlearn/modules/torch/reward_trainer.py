"""Training of a reward model on pairs of a better and a worse completion.

Shape legend: ``B`` pairs, ``T`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from chatlearn.data.collate import Samples
from chatlearn.data.prompts import read_sample
from chatlearn.errors import ConfigError, DataError
from chatlearn.guards import is_dict
from chatlearn.modules.torch.chat import check_messages, is_conversation
from chatlearn.modules.torch.exchanges import Exchange, check_lengths, encode
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.optimization import TrainArgs, check_num_minibatches, make_optimizer, run_updates
from chatlearn.modules.torch.prompts import MAX_TOKENIZED_AHEAD, padded
from chatlearn.modules.torch.reward_model import (
    load_reward_model,
    load_reward_tokenizer,
    no_adapters,
    pad_token_of,
    sequence_scores,
)
from chatlearn.types import Batch

_FORM = '{"prompt": text or messages, "chosen": better completion, "rejected": worse completion}'


def bradley_terry_loss(
    chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None, *, centering: float = 0.0
) -> Tensor:
    """Negative log-likelihood that the better completion wins, of each pair::

        loss = -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2

    The first term is Ouyang et al. 2022, arXiv:2203.02155, eq. 1, for one pair of a prompt, after the model of Bradley
    and Terry 1952; the margin is that of Touvron et al. 2023, arXiv:2307.09288, eq. 2. It says nothing about the sum
    of both scores, which drifts; the second term keeps it near 0 (Eisenstein et al. 2023, arXiv:2312.09244).

    Args:
        chosen_B: ``[B]``; scores of the better completions.
        rejected_B: ``[B]``; scores of the worse ones.
        margin_B: ``[B]``; how much better at least; 0 if ``None``.
        centering: weight of the second term.

    Returns:
        ``[B]``, differentiable in both scores.
    """
    difference_B = chosen_B - rejected_B if margin_B is None else chosen_B - rejected_B - margin_B
    loss_B = -logsigmoid(difference_B)
    return loss_B + centering * (chosen_B + rejected_B).square() if centering else loss_B


class RewardTrainer(TorchModule):
    """Fits a sequence classification model with one output to preference pairs.

    As the only module of ``Engine(None, trainer)`` it builds its own data set from dicts with ``prompt``, ``chosen``,
    ``rejected`` and, if wanted, ``margin`` (see :class:`PreferencePairs`). Logs ``loss``, ``accuracy`` (share of pairs
    whose better completion has the higher score), ``margin`` (mean difference of the scores), ``chosen_reward`` and
    ``rejected_reward`` (mean scores), ``grad_norm``, ``learning_rate``. ``eval_step`` scores pairs without learning.
    What ``export`` writes is a folder for :class:`~chatlearn.modules.torch.reward_model.LearnedReward`, or
    for ``AutoModelForSequenceClassification``.
    """

    class Args(TrainArgs):
        """``models.<name>.args``."""

        new_head: bool = Field(
            False, description="model_path is a language model; it gets a head, drawn with the run's seed"
        )
        max_tokens: int | None = Field(
            None, ge=1, description="the most tokens of prompt and completion; the prompt's beginning is cut first"
        )
        append_eos: bool = Field(False, description="end completions with the end-of-sequence token")
        centering: float = Field(0.0, ge=0, description="weight of the squared sum of a pair's scores in the loss")

        @field_validator("lora")
        @classmethod
        def _is_whole(cls, value: Any) -> Any:
            return no_adapters(value)

        @field_validator("packing")
        @classmethod
        def _pads(cls, value: bool) -> bool:
            if value:
                raise ValueError("pairs are padded, since a score belongs to the end of a row; leave packing out")
            return value

        @field_validator("max_tokens_per_micro_batch")
        @classmethod
        def _takes_pairs(cls, value: int | None) -> int | None:
            if value is not None:
                raise ValueError(
                    "micro-batches are counted in pairs here; leave it out, and set runtime.train_micro_batch_size"
                )
            return value

    reads = frozenset({"chosen_tokens", "chosen_mask", "rejected_tokens", "rejected_mask", "margin"})
    writes = frozenset({"chosen_reward", "rejected_reward"})

    def setup(self) -> None:
        """Loads model and tokenizer and makes the optimizer.

        Raises:
            ConfigError: the folder can't be loaded, or its model has several outputs.
        """
        args = self.model_args
        model = load_reward_model(args, self.device, new_head=args.new_head)
        if model.config.num_labels != 1:
            raise ConfigError(
                f"models.{self.name}.args.model_path {args.model_path!r} has {model.config.num_labels} outputs, but a "
                f"reward is one number. Give a model with a single output, or a language model with `new_head: true`."
            )
        self.model = model
        self.tokenizer = load_reward_tokenizer(args, needs_eos=args.append_eos)
        self.optimizer = make_optimizer(self.model, args)
        check_num_minibatches(self)

    def build_dataset(self, pairs: Sequence[Any]) -> PreferencePairs:
        """Preference pairs, tokenized by the model's own tokenizer."""
        args = self.model_args
        return PreferencePairs(pairs, self.tokenizer, self.model, args.max_tokens, args.append_eos)

    def train_step(self, data: list[Batch], train_info: dict[str, Any]) -> None:
        """``num_minibatches`` updates on one global batch, each the mean over its pairs."""
        # one entry per pair is what the shared updates count
        pairs = [{**batch, "response_mask": torch.ones(len(batch["margin"]), 1)} for batch in data]
        run_updates(self, pairs, train_info["iteration"], self._sums)

    @torch.inference_mode()
    def eval_step(self, data: Batch) -> Batch:
        """Adds ``chosen_reward`` and ``rejected_reward``, ``[B]`` float32, and logs the means of a train step."""
        chosen, rejected = self._scores(data)
        loss = bradley_terry_loss(chosen, rejected, data["margin"].to(chosen), centering=self.model_args.centering)
        for name, value in {"loss": loss, **_shown(chosen, rejected)}.items():
            self.log(name, value.mean())
        return {**data, "chosen_reward": chosen.cpu(), "rejected_reward": rejected.cpu()}

    def _sums(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and what is logged, as sums over its pairs."""
        chosen, rejected = self._scores(batch)
        loss = bradley_terry_loss(chosen, rejected, batch["margin"].to(chosen), centering=self.model_args.centering)
        return loss.sum(), {name: value.sum() for name, value in _shown(chosen.detach(), rejected.detach()).items()}

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the better and of the worse completions ``[B]``, from one forward pass."""
        masks = _stacked(batch["chosen_mask"], batch["rejected_mask"])
        tokens = _stacked(batch["chosen_tokens"], batch["rejected_tokens"])
        width = int(masks.sum(1).max())
        chosen, rejected = sequence_scores(self.model, tokens[:, :width], masks[:, :width]).chunk(2)
        return chosen, rejected


def _stacked(first_BT: Tensor, second_BT: Tensor) -> Tensor:
    """Rows of both, as wide as the wider one."""
    width = max(first_BT.shape[1], second_BT.shape[1])
    return torch.cat([pad(part, (0, width - part.shape[1])) for part in (first_BT, second_BT)])


def _shown(chosen_B: Tensor, rejected_B: Tensor) -> dict[str, Tensor]:
    """What is logged of each pair."""
    return {
        "accuracy": (chosen_B > rejected_B).float(),
        "margin": chosen_B - rejected_B,
        "chosen_reward": chosen_B,
        "rejected_reward": rejected_B,
    }


class PreferencePairs:
    """Pairs of a better and a worse completion of one prompt, as batches of tokens.

    A pair is a dict with ``prompt``, ``chosen``, ``rejected`` and optionally ``margin``, a number (see
    :func:`bradley_terry_loss`). The prompt is a text or chat messages. A completion is a text; after chat messages it
    may be messages too, the last one the assistant's. Conversations are rendered by the tokenizer's chat template.

    Batches hold ``prompt``, ``chosen`` and ``rejected`` (lists, as given), ``margin`` ``[B]`` float32, and
    ``chosen_tokens``, ``chosen_mask``, ``rejected_tokens``, ``rejected_mask`` ``[B, T]`` int64, padded on the right.

    Args:
        pairs: a sequence of dicts.
        tokenizer: of the reward model.
        model: the reward model; its padding token and number of positions count.
        max_tokens: see :func:`~chatlearn.modules.torch.exchanges.encode`.
        append_eos: likewise.

    Raises:
        DataError: a pair is malformed, or its completions are equal; it is named. More than
            :data:`~chatlearn.modules.torch.prompts.MAX_TOKENIZED_AHEAD` pairs are checked when their turn comes.
    """

    def __init__(
        self, pairs: Sequence[Any], tokenizer: Any, model: Any, max_tokens: int | None, append_eos: bool
    ) -> None:
        self._pairs, self._tokenizer, self._model = pairs, tokenizer, model
        self._max_tokens, self._append_eos = max_tokens, append_eos
        if len(pairs) <= MAX_TOKENIZED_AHEAD:
            for index in range(len(pairs)):
                _ = self[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = f"pair {index}"
        pair = read_sample(self._pairs, index, place)
        if not is_dict(pair):
            raise DataError(f"{place} is {pair!r}. A pair is a dict {_FORM}.")
        if missing := [key for key in ("prompt", "chosen", "rejected") if pair.get(key) is None]:
            raise DataError(
                f"{place} has no {' and no '.join(missing)}; it has {', '.join(map(str, pair)) or 'no keys'}. A pair "
                f"is a dict {_FORM}."
            )
        if pair["chosen"] == pair["rejected"]:
            raise DataError(
                f"{place}: chosen and rejected are equal ({pair['chosen']!r}), so there is nothing to prefer. Leave "
                f"the pair out."
            )
        margin = pair.get("margin")
        if margin is not None and not (type(margin) in (int, float) and math.isfinite(margin)):
            raise DataError(f"{place}: margin is {margin!r}. Give a finite number, or leave it out for 0.")
        for key in ("chosen", "rejected"):
            self._exchange(pair["prompt"], pair[key], key, place)
        return {
            "prompt": pair["prompt"],
            "chosen": pair["chosen"],
            "rejected": pair["rejected"],
            "margin": float(margin or 0),
            "pair": index,
        }

    def collate_fn(self, samples: Samples) -> Batch:
        """Tokenizes a batch of pairs."""
        batch: Batch = {key: samples[key] for key in ("prompt", "chosen", "rejected")}
        batch["margin"] = torch.tensor(samples["margin"], dtype=torch.float32)
        for key in ("chosen", "rejected"):
            exchanges = [
                self._exchange(prompt, completion, key, f"pair {index}")
                for prompt, completion, index in zip(samples["prompt"], samples[key], samples["pair"], strict=True)
            ]
            ids = encode(self._tokenizer, exchanges, self._max_tokens, self._append_eos)
            check_lengths(self._model, ids, [exchange.place for exchange in exchanges])
            batch[f"{key}_tokens"], batch[f"{key}_mask"] = padded(ids, pad_token_of(self._model), side="right")
        return batch

    def _exchange(self, prompt: Any, completion: Any, key: str, place: str) -> Exchange:
        """A prompt with one of its completions.

        Raises:
            DataError: either is malformed.
        """
        place = f"{place}, {key}"
        if isinstance(prompt, str) and isinstance(completion, str):
            return Exchange(prompt, completion, place=place)
        if not is_conversation(prompt):
            raise DataError(
                f"{place}: the prompt is {prompt!r} and the completion {completion!r}. Give text for both, or chat "
                f"messages for the prompt and text or messages for the completion."
            )
        if not self._tokenizer.chat_template:
            raise DataError(
                f"{place}: the prompt is a conversation, but the tokenizer of {self._tokenizer.name_or_path!r} has no "
                f"chat template. Set `chat_template` in its tokenizer_config.json, or give the prompt as text."
            )
        check_messages(prompt, place)
        if isinstance(completion, str):
            return Exchange("", completion, prompt, place=place)
        if not is_conversation(completion) or completion[-1].get("role") != "assistant":
            raise DataError(
                f"{place}: the completion is {completion!r}. Give the assistant's text, or messages that end with the "
                f"assistant's."
            )
        check_messages(completion, place)
        return Exchange("", completion[-1]["content"], [*prompt, *completion[:-1]], place=place)
