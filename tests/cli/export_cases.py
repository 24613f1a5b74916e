"""Runs with a tiny model, whose checkpoints are exported, and what their policies answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toys

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, Trainer
from chatlearn.modules.torch import PolicyInference, PolicyTrainer
from chatlearn.modules.torch.module import TorchModule
from chatlearn.recipes.tasks.base import character_tokenizer, tiny_llama

PROMPTS = ["abc", "hello", "one two", "xyz!"]
LORA = {"r": 4, "alpha": 8}


class Judge(BaseModule):
    """Advantages that a policy can learn from: the earlier the token in the vocabulary, the better."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "advantages": (50 - data["tokens"].float()) * data["response_mask"]}


def model_folder(folder: Path) -> str:
    """A tiny Llama and its tokenizer."""
    tokenizer = character_tokenizer([])
    tiny_llama(tokenizer, 0, 6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Trained:
    """A run, and what was measured in it.

    Attributes:
        path: of its folder.
        model: that it began with.
        answers: of its policy to ``PROMPTS`` at the end, greedily: all that ``eval_step`` gives.
        scores: ``old_logprobs`` of these by its trainer, at the end.
    """

    path: Path
    model: str
    answers: dict[str, Any]
    scores: torch.Tensor

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return self.path / "checkpoints" / "episode-000002"


def settings(output: Path, model: str, policy: dict[str, Any], trainer: dict[str, Any], **runtime: Any) -> Any:
    """A configuration of two episodes."""
    common = {"model_path": model}
    sizes = {"sample_per_episode": 8, "train_micro_batch_size": 4, "generation_batch_size": 8}
    return {
        "models": {
            "policy": {"args": {**common, "max_new_tokens": 5, **policy}},
            "judge": {},
            "trainer": {"args": {**common, "learning_rate": 0.02, **trainer}},
        },
        **toys.settings(output, **sizes, save_episode_interval=1, log_samples=0, **runtime),
    }


def train(output: Path, model: str, policy: dict[str, Any], trainer: dict[str, Any], **runtime: Any) -> Trained:
    """Trains for two episodes."""
    chatlearn.init(settings(output, model, policy, trainer, **runtime))
    sampler, judge, learner = PolicyInference("policy"), Judge("judge"), PolicyTrainer("trainer")
    engine = Engine(
        Environment(lambda batch: judge.forward_step(sampler.forward_step(batch))),
        Trainer(lambda batch: learner.train_step(batch)),
    )
    with toys.quick_runs():
        engine.set_parameter_sync(learner, sampler).set_dataset(PROMPTS * 2).learn()
        answers = engine.call(sampler.eval_step, {"prompt": PROMPTS})
        scored = engine.call(learner.forward_step, answers)
        engine.stop()
    assert answers is not None
    assert scored is not None
    return Trained(output / "toy", model, answers, scored["old_logprobs"])


def answers_of(output: Path, **args: Any) -> dict[str, Any]:
    """What a policy of these ``args`` answers to ``PROMPTS``, in a run of its own."""
    models = {"policy": {"args": {"max_new_tokens": 5, **args}}}
    chatlearn.init({"models": models, **toys.settings(output)})
    policy = PolicyInference("policy")
    engine = EvalEngine(lambda batch: policy.eval_step(batch)).set_dataset(PROMPTS)
    answers = engine.call(policy.eval_step, {"prompt": PROMPTS})
    engine.stop()
    assert answers is not None
    return answers


class Widths(TorchModule):
    """A model that is none of transformers'; ``width`` is nothing that a checkpoint holds."""

    def __init__(self, name: str, width: int = 3) -> None:
        super().__init__(name)
        self._width = width

    def setup(self) -> None:
        self.model = torch.nn.Linear(self._width, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def train_step(self, data: list[dict[str, Any]]) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(len(data), self._width)).sum().backward()
        self.optimizer.step()


class Wide(Widths):
    """Has no width of its own."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__(name, width)


class Mute(Widths):
    """Can't be exported."""

    export = None  # type: ignore[assignment]
