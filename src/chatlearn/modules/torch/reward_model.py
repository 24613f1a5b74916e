"""A learned reward: a model that classifies sequences, whose output is the score of a prompt and its completion.

Shape legend: ``B`` samples, ``T`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from chatlearn.algorithms.advantages import grpo
from chatlearn.errors import ConfigError, DataError
from chatlearn.modules.torch.chat import is_conversation
from chatlearn.modules.torch.exchanges import Exchange, check_lengths, encode
from chatlearn.modules.torch.huggingface import (
    ModelArgs,
    loaded,
)
from chatlearn.modules.torch.prompts import padded

_EPSILON = 1e-8
"""Added to the variance, as where advantages are whitened."""


class LearnedRewardArgs(ModelArgs):
    """Which model scores, what it reads, and what becomes of its scores."""

    batch_size: int = Field(32, ge=1, description="texts that are scored at once")
    max_tokens: int | None = Field(
        None, ge=1, description="the most tokens of prompt and completion; the prompt's beginning is cut first"
    )
    append_eos: bool = Field(
        False, description="end a completion that has ended by itself with the end-of-sequence token"
    )
    label: int | None = Field(None, ge=0, description="which output is the score, where the model has several")
    scaling: Literal["none", "running", "group"] = Field(
        "none",
        description="`running` standardises scores by mean and deviation of all earlier episodes, `group` by those of "
        "the responses to one prompt",
    )
    clip: float | None = Field(None, gt=0, description="scaled scores are cut off at plus and minus this; null: never")

    @field_validator("lora")
    @classmethod
    def _is_whole(cls, value: Any) -> Any:
        return no_adapters(value)


def no_adapters(value: Any) -> Any:
    """Refuses ``lora`` beside a reward model's ``model_path``."""
    if value is not None:
        raise ValueError("reward models have no adapters; leave it out, or merge them into the folder of the model")
    return value


class LearnedReward:
    """Scores completions by a folder of ``AutoModelForSequenceClassification``, with the folder's own tokenizer.

    A conversation (column ``messages``) is rendered by the tokenizer's chat template, if it has one, with the
    completion as the assistant's answer. Otherwise the model reads the tokens of the prompt's text, those of the
    completion, and the end-of-sequence token if it is asked for and the completion has ended (column ``finished``).

    Args:
        args: the model and what becomes of its scores.
        device: where the model belongs.

    Raises:
        ConfigError: the folder can't be loaded, has no tokenizer, no trained head or no padding token, or has several
            outputs and ``label`` names none of them.
    """

    def __init__(self, args: LearnedRewardArgs, device: torch.device) -> None:
        self.args = args
        self.model = load_reward_model(args, device)
        self.tokenizer = load_reward_tokenizer(args, needs_eos=args.append_eos)
        self._label = _label_of(self.model, args)
        self._past, self._episode = _Moments(), _Moments()

    def scores(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        group_ids: Sequence[int],
    ) -> Tensor:
        """Raw scores of a batch.

        Args:
            prompts: B texts.
            completions: B texts.
            columns: the batch's other entries; ``messages`` and ``finished`` are read, where they are there.
            group_ids: B ids; scores don't depend on them.

        Returns:
            ``[B]`` float32, on the CPU.

        Raises:
            DataError: a conversation is malformed, a sample has no tokens or more than the model can take, or its
                score is not finite; it is named.
        """
        conversations = columns.get("messages") or [None] * len(prompts)
        ended = columns.get("finished", [True] * len(prompts))
        exchanges = [
            Exchange(
                prompt, completion, conversation if is_conversation(conversation) else None, bool(end), f"sample {row}"
            )
            for row, (prompt, completion, conversation, end) in enumerate(
                zip(prompts, completions, conversations, ended, strict=True)
            )
        ]
        ids = encode(self.tokenizer, exchanges, self.args.max_tokens, self.args.append_eos)
        check_lengths(self.model, ids, [exchange.place for exchange in exchanges])
        raw = self._batched(ids)
        if not raw.isfinite().all():
            row = int((~raw.isfinite()).nonzero()[0])
            raise DataError(
                f"sample {row}: the reward model {self.args.model_path} gives {float(raw[row])} for the completion "
                f"{completions[row]!r}. Look at its weights, or load it with dtype: float32."
            )
        return raw

    def scaled(self, raw: Tensor, group_ids: Sequence[int], *, remember: bool = True) -> Tensor:
        """Raw scores on a scale that training can rely on.

        - ``none``: as they are.
        - ``running``: ``(score - mean) / sqrt(variance + 1e-8)`` with the sample variance of all scores of earlier
          episodes; as they are while there are fewer than two (Zheng et al. 2023, arXiv:2307.04964, section 5.3.1
          "Reward normalization and clipping", which takes mean and deviation of history too). Both are fixed for
          the length of an episode, so a sample's reward does not depend on its batch.
        - ``group``: ``(score - mean) / (deviation + 1e-6)`` over the responses to the same prompt, those of equal
          scores 0 (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        Then ``clip`` cuts them off on both sides. Scores of NaN stand for what could not be scored: they stay, and
        count nowhere.

        Args:
            raw: ``[B]`` float32, of :meth:`scores`.
            group_ids: B ids; responses to one prompt share one.
            remember: count these scores for later episodes; not for those of an evaluation.

        Returns:
            ``[B]`` float32.

        Raises:
            DataError: ``scaling: group``, but no two of several samples answer the same prompt.
        """
        if self.args.scaling == "running":
            if remember:
                self._episode = self._episode.merged(_Moments.of(raw))
            raw = (raw - self._past.mean) / self._past.deviation if self._past.count > 1 else raw
        elif self.args.scaling == "group":
            if len(raw) > 1 and len(set(group_ids)) == len(raw):
                raise DataError(
                    f"the learned reward of {self.args.model_path} has `scaling: group`, but each of the {len(raw)} "
                    f"samples of the batch answers a prompt of its own, so all would get 0. Set "
                    f"runtime.num_inference_per_prompt to 2 or more, or take `scaling: running`."
                )
            raw = torch.where(raw.isnan(), raw, grpo(raw, group_ids))
        clip = self.args.clip
        return raw if clip is None else raw.clamp(-clip, clip)

    def end_episode(self) -> None:
        """The scores of this episode count from the next one on."""
        self._past, self._episode = self._past.merged(self._episode), _Moments()

    def state_dict(self) -> dict[str, Any]:
        """What ``scaling: running`` has seen."""
        return {"past": asdict(self._past), "episode": asdict(self._episode)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._past, self._episode = _Moments(**state["past"]), _Moments(**state["episode"])

    @torch.inference_mode()
    def _batched(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Texts of like length go together."""
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]), reverse=True)
        raw = torch.zeros(len(ids))
        for start in range(0, len(order), self.args.batch_size):
            rows = order[start : start + self.args.batch_size]
            tokens, mask = padded([ids[row] for row in rows], pad_token_of(self.model), side="right")
            raw[rows] = sequence_scores(self.model, tokens, mask, self._label).cpu()
        return raw


@dataclass(frozen=True)
class _Moments:
    """Count, mean and sum of squared deviations of numbers, in double precision."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> _Moments:
        """Of all that are not NaN."""
        values = values[~values.isnan()].double()
        if len(values) == 0:
            return cls()
        mean = values.mean()
        return cls(len(values), float(mean), float((values - mean).square().sum()))

    def merged(self, other: _Moments) -> _Moments:
        """Of the numbers of both (Welford 1962; for two sets of numbers Chan, Golub and LeVeque 1983, eq. 2.1)."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        squares = self.squares + other.squares + delta * delta * self.count * other.count / count
        return _Moments(count, self.mean + delta * other.count / count, squares)

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / (self.count - 1) + _EPSILON)


def load_reward_model(args: ModelArgs, device: torch.device, *, new_head: bool = False) -> Any:
    """The sequence classification model of a folder, on ``device``, without dropout.

    Args:
        args: name the folder.
        device: where the model belongs.
        new_head: the folder holds a model without such a head; it gets one with a single output, drawn as its
            architecture draws weights, and its configuration the tokenizer's padding token if it names none.

    Raises:
        ConfigError: it can't be loaded; its files lack parameters, which transformers would draw at random; it has a
            head though a new one is asked for; or its configuration names no padding token.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = loaded(AutoConfig, args, what="configuration")
    _settle_padding(config.get_text_config(), args, new_head)
    config.use_cache = False
    if new_head:
        config.num_labels = 1
    options: dict[str, Any] = {"config": config, "dtype": getattr(torch, args.dtype), "output_loading_info": True}
    try:
        with _without_report():
            model, info = loaded(AutoModelForSequenceClassification, args, what="model", **options)
    except RuntimeError as error:
        if not new_head:
            raise
        raise _has_a_head(args) from error  # of another size: transformers refuses to put in the one
    missing = sorted(info["missing_keys"])
    backbone = f"{model.base_model_prefix}."
    lacking = [name for name in missing if name.startswith(backbone)] if new_head else missing
    if lacking:
        advice = (
            "Give a folder that save_pretrained wrote from the whole model."
            if new_head
            else "Give the folder of a trained reward model; RewardTrainer makes one from a language model's folder."
        )
        raise ConfigError(
            f"model_path {args.model_path!r}: its files lack {len(lacking)} parameters of a {type(model).__name__}: "
            f"{', '.join(lacking[:4])}{', …' if len(lacking) > 4 else ''}. {advice}"
        )
    if new_head and not missing:
        raise _has_a_head(args)
    return model.to(device).eval()


@contextmanager
def _without_report() -> Generator[None]:
    """Without transformers' table of what is missing: that is an error here, or asked for."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _has_a_head(args: ModelArgs) -> ConfigError:
    return ConfigError(
        f"model_path {args.model_path!r} has a classification head already, and `new_head: true` would drop it. Leave "
        f"new_head out to train it further, or give the folder of a language model."
    )


def _settle_padding(config: Any, args: ModelArgs, new_head: bool) -> None:
    """Decoders take a sequence's score at its last token that is not padding, so they have to know which that is."""
    if config.pad_token_id is None and new_head:
        tokenizer = load_reward_tokenizer(args)
        config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if config.pad_token_id is None:
        raise ConfigError(
            f"model_path {args.model_path!r}: its config.json has no pad_token_id, so the model can't tell where a "
            f"shorter text of a batch ends. Set pad_token_id in {Path(args.model_path) / 'config.json'} to the padding "
            f"token that it was trained with (often the tokenizer's)."
        )
    if not 0 <= config.pad_token_id < config.vocab_size:
        raise ConfigError(
            f"model_path {args.model_path!r}: pad_token_id is {config.pad_token_id}, but the model knows the tokens 0 "
            f"to {config.vocab_size - 1} only. Set pad_token_id in its config.json to one of these."
        )


def load_reward_tokenizer(args: ModelArgs, *, needs_eos: bool = False) -> Any:
    """The tokenizer of a reward model's folder, as it is.

    Raises:
        ConfigError: there is none, or it has no end-of-sequence token where one is needed.
    """
    from transformers import AutoTokenizer

    tokenizer = loaded(AutoTokenizer, args, what="tokenizer")
    if needs_eos and tokenizer.eos_token_id is None:
        raise ConfigError(
            f"append_eos: the tokenizer of {args.model_path} has no end-of-sequence token. Leave append_eos out, or "
            f"set `eos_token` in its tokenizer_config.json."
        )
    return tokenizer


def _label_of(model: Any, args: LearnedRewardArgs) -> int:
    """Number of the output that is the score."""
    num_labels = model.config.num_labels
    if num_labels > 1 and args.label is None:
        names = ", ".join(f"{number} {name}" for number, name in list(model.config.id2label.items())[:8])
        raise ConfigError(
            f"model_path {args.model_path!r} has {num_labels} outputs ({names}). Say which is the score: `label: "
            f"{num_labels - 1}`, for example."
        )
    label = args.label or 0
    if label >= num_labels:
        raise ConfigError(
            f"label is {label}, but model_path {args.model_path!r} has {num_labels} output"
            f"{'s' if num_labels > 1 else ''}: choose from 0 to {num_labels - 1}."
        )
    return label


def pad_token_of(model: Any) -> int:
    """The padding token that the model knows, whatever its tokenizer pads with."""
    return model.config.get_text_config().pad_token_id


def sequence_scores(model: Any, tokens_BT: Tensor, mask_BT: Tensor, label: int = 0) -> Tensor:
    """Scores ``[B]`` float32 of sequences that are padded on the right; differentiable.

    Args:
        model: of :func:`load_reward_model`.
        tokens_BT: ``[B, T]`` int64; what stands on padding does not matter.
        mask_BT: ``[B, T]``; nonzero on tokens.
        label: which output.
    """
    device = next(model.parameters()).device
    mask = mask_BT.to(device).long()
    # the model finds the last token by its id, not by the mask
    tokens = torch.where(mask.bool(), tokens_BT.to(device), pad_token_of(model))
    return model(input_ids=tokens, attention_mask=mask).logits[:, label].float()
