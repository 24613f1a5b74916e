"""The policy that samples, and the reference that it is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from chatlearn.errors import ConfigError
from chatlearn.guards import is_list
from chatlearn.modules.marks import step
from chatlearn.modules.torch.generation import BadWords, Sampling, sample
from chatlearn.modules.torch.huggingface import ModelArgs, load_causal_lm, load_tokenizer
from chatlearn.modules.torch.lora import adapter_of, without_adapter
from chatlearn.modules.torch.module import TorchModule
from chatlearn.modules.torch.prompts import Overflow, TokenizedPrompts, tokenize_batch
from chatlearn.modules.torch.scoring import Window, policy_logprobs
from chatlearn.modules.torch.stopping import StopStrings
from chatlearn.types import Batch


class PolicyInference(TorchModule):
    """Samples one response per prompt.

    A prompt is a text, or chat messages that the tokenizer's template renders (see
    :class:`chatlearn.modules.torch.prompts.Prompt`). ``forward_step`` takes ``prompt`` or ``messages`` (the data set
    that it builds has tokenized them already) and adds ``tokens``, ``attention_mask``, ``response_mask``,
    ``logprobs``, ``response`` and ``finished`` (see :mod:`chatlearn.types`). A response that a stop string ends keeps
    its tokens up to the one that completes the string; its text ends before the string. Logs ``response_length`` and
    ``entropy`` (the estimate -E[log p] from the sampled tokens, nats per token).
    """

    class Args(ModelArgs):
        """``models.<name>.args``."""

        max_new_tokens: int = Field(
            ge=1, description="the most tokens of a response, the end-of-sequence token included"
        )
        temperature: float = Field(1.0, gt=0, description="of sampling; trainers and reference need the same")
        top_p: float = Field(
            1.0, gt=0, le=1, description="only the most likely tokens whose probabilities together reach this"
        )
        top_k: int | None = Field(None, ge=1, description="only this many of the most likely tokens; null: all")
        min_p: float = Field(
            0.0, ge=0, le=1, description="only tokens at least this many times as likely as the most likely one"
        )
        repetition_penalty: float = Field(
            1.0, gt=0, description="above 1, tokens that the text holds already become less likely"
        )
        bad_words: list[str] = Field([], description="texts that never appear in a response")
        min_new_tokens: int = Field(
            0, ge=0, description="a response can't end with an end-of-sequence token before it has so many tokens"
        )
        stop: list[str] = Field([], description="strings that end a response; its text ends before them")
        max_running: int | None = Field(
            None, ge=1, description="the most sequences of a batch at once; others join as these end; null: all"
        )
        max_prompt_tokens: int | None = Field(None, ge=1, description="the most tokens of a prompt; null: any number")
        prompt_overflow: Overflow = Field(
            "error",
            description="what becomes of longer prompts: `truncate_left` keeps their end, `truncate_right` their "
            "beginning, `drop` leaves them out",
        )

        @field_validator("stop")
        @classmethod
        def _not_empty(cls, value: list[str]) -> list[str]:
            if "" in value:
                raise ValueError("an empty string would end every response at once; leave it out")
            return value

        @field_validator("bad_words")
        @classmethod
        def _has_letters(cls, value: list[str]) -> list[str]:
            if "" in value:
                raise ValueError("an empty string is in every text; leave it out")
            return value

        @field_validator("min_new_tokens")
        @classmethod
        def _within_the_limit(cls, value: int, info: ValidationInfo) -> int:
            if value > (limit := info.data.get("max_new_tokens", value)):
                raise ValueError(
                    f"completion limit below the minimum: max_new_tokens is {limit}, min_new_tokens {value}; raise "
                    f"the first or lower the second"
                )
            return value

        @field_validator("prompt_overflow")
        @classmethod
        def _has_a_limit(cls, value: Overflow, info: ValidationInfo) -> Overflow:
            if value != "error" and info.data.get("max_prompt_tokens", 1) is None:
                raise ValueError(f"{value!r} needs a limit; set max_prompt_tokens beside it")
            return value

        def sampling(self) -> Sampling:
            """How tokens are drawn."""
            return Sampling(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)})

    reads = frozenset[str]()  # prompt or messages: which of them, a set can't say
    writes = frozenset({"tokens", "attention_mask", "response_mask", "logprobs", "response", "finished"})

    @classmethod
    def why_not(cls, step: str, args: Mapping[str, Any]) -> tuple[str, str] | None:
        """The step ``reference_step`` needs an adapter."""
        if step != "reference_step" or args.get("lora") is not None:
            return None
        return "has no `lora`, but a flow calls reference_step, which scores with the adapter switched off", (
            "set lora, or call the step of a PolicyReference"
        )

    def setup(self) -> None:
        """Loads model and tokenizer."""
        self.model = load_causal_lm(self.model_args, self.device)
        self.tokenizer = load_tokenizer(self.model_args)
        words = self.model_args.bad_words
        self.bad_words = BadWords(self.tokenizer, words) if words else None

    def build_dataset(self, prompts: Sequence[Any]) -> TokenizedPrompts:
        """Prompts, tokenized by the model's own tokenizer."""
        args = self.model_args
        return TokenizedPrompts(prompts, self.tokenizer, args.max_prompt_tokens, args.prompt_overflow)

    def forward_step(self, data: Batch, greedy: bool = False) -> Batch:
        """Samples a response to each prompt; with ``greedy`` takes the most likely token each time."""
        args = self.model_args
        noise = None if greedy else self.uniforms(self.batch.sample_ids, args.max_new_tokens).to(self.device)
        if "prompt_tokens" not in data:
            data = tokenize_batch(self.tokenizer, data, args.max_prompt_tokens, args.prompt_overflow)
        stop = StopStrings(self.tokenizer, args.stop) if args.stop else None
        prompt_tokens, prompt_mask = data["prompt_tokens"].to(self.device), data["prompt_mask"].to(self.device)
        responses = sample(
            self.model,
            prompt_tokens,
            prompt_mask,
            max_new_tokens=args.max_new_tokens,
            eos_token_ids=_eos_token_ids(self.model, self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id,
            options=args.sampling(),
            bad_words=self.bad_words,
            noise=noise,
            ended=stop and stop.ended,
            max_running=args.max_running,
        )
        texts = self.tokenizer.batch_decode(responses.tokens, skip_special_tokens=True)
        width = prompt_tokens.shape[1]
        mask = responses.mask.cpu()
        self.log("response_length", mask.sum() / len(mask))
        self.log("entropy", -responses.logprobs.sum().cpu() / mask.sum())
        before = torch.zeros(len(mask), width)
        return {
            **{key: value for key, value in data.items() if key not in ("prompt_tokens", "prompt_mask")},
            "tokens": torch.cat([prompt_tokens, responses.tokens], 1).cpu(),
            "attention_mask": torch.cat([data["prompt_mask"].cpu(), mask.long()], 1),
            "response_mask": torch.cat([before, mask], 1),
            "logprobs": torch.cat([before, responses.logprobs.cpu()], 1),
            "response": [stop.cut(text) for text in texts] if stop else texts,
            "finished": responses.finished.cpu(),
        }

    def eval_step(self, data: Batch) -> Batch:
        """The most likely response to each prompt."""
        return self.forward_step(data, greedy=True)

    @step(reads=("tokens", "attention_mask", "response_mask"), writes=("ref_logprobs",), borrows=True)
    @torch.inference_mode()
    def reference_step(self, data: Batch) -> Batch:
        """Adds ``ref_logprobs``, as a :class:`PolicyReference` with the base model does: scores the responses with the
        adapter switched off.

        Raises:
            ConfigError: the policy has no adapter.
        """
        if adapter_of(self.model) is None:
            raise ConfigError(
                f"{self.name}.reference_step scores with the adapter switched off, but {self.name} has none. Set "
                f"models.{self.name}.args.lora, or call the step of a PolicyReference instead."
            )
        window = Window.of(data, self.device)
        with without_adapter(self.model):
            logprobs = policy_logprobs(self.model, window, self.model_args.temperature)
        return {**data, "ref_logprobs": window.spread(logprobs, data["tokens"].shape[1])}


class PolicyReference(TorchModule):
    """Adds ``ref_logprobs``, the log-probabilities of the sampled tokens under a model that is not trained."""

    class Args(ModelArgs):
        """``models.<name>.args``."""

        temperature: float = Field(1.0, gt=0, description="that the responses were sampled with")

    reads = frozenset({"tokens", "attention_mask", "response_mask"})
    writes = frozenset({"ref_logprobs"})

    def setup(self) -> None:
        """Loads the model."""
        self.model = load_causal_lm(self.model_args, self.device)

    @step(borrows=True)
    @torch.inference_mode()
    def forward_step(self, data: Batch) -> Batch:
        """Scores the responses of a batch."""
        window = Window.of(data, self.device)
        logprobs = policy_logprobs(self.model, window, self.model_args.temperature)
        return {**data, "ref_logprobs": window.spread(logprobs, data["tokens"].shape[1])}


def _eos_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """All tokens that end a response: the tokenizer's, and those that the model's generation config names."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if is_list(configured) else [configured]
    return {tokenizer.eos_token_id, *(token for token in found if token is not None)}
