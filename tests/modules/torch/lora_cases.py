"""Adapters that do something, train steps on them, and small runs with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from tiny_models import PROMPTS, lay_out, random_rows

from chatlearn import BaseModule, Engine, Environment, Trainer
from chatlearn.modules.torch import PolicyInference, PolicyTrainer
from chatlearn.runtime.local import LocalCluster
from chatlearn.sync.transport import write_weights
from chatlearn.types import Batch

LORA: dict[str, Any] = {"r": 4, "alpha": 8}


def disturb(model: torch.nn.Module, seed: int = 3) -> None:
    """Gives every trained weight some noise, so that no product of an adapter is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=generator)


def adapter_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the adapters' matrices."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


def experience(seed: int = 0) -> Batch:
    """What trainers of policies and values need; the numbers mean nothing."""
    rows = random_rows(8, seed)
    generator = torch.Generator().manual_seed(seed)
    columns = {
        name: [torch.randn(len(response), generator=generator).tolist() for _, response in rows]
        for name in ("advantages", "values", "returns")
    }
    columns["logprobs"] = [[-2.0] * len(response) for _, response in rows]
    return lay_out(rows, "both", **columns)


def train(module: Any, steps: int = 1) -> None:
    """Train steps on batches of their own."""
    for iteration in range(steps):
        module.train_step([experience(iteration)], {"iteration": iteration})


class Judge(BaseModule):
    """Advantages that a policy can learn from: the earlier the letter in the alphabet, the better."""

    def forward_step(self, data: Batch) -> Batch:
        return {**data, "advantages": (16 - data["tokens"].float()) * data["response_mask"]}


class Counting(LocalCluster):
    """Notes what each sync sends."""

    sent: ClassVar[list[dict[str, torch.Tensor]]] = []

    def call(self, handle: Any, method: str, *args: Any, **more: Any) -> Any:
        if args and args[0] is write_weights:
            published = self.get(args[2])
            self.sent.append({t.name: v.clone() for t, v in zip(args[1], published.tensors, strict=True)})
        return super().call(handle, method, *args, **more)


def write_settings(folder: str, output: Path, models: dict[str, Any], **runtime: Any) -> dict[str, Any]:
    """A configuration of a policy that samples, a policy that is trained, and perhaps of others."""
    common = {"model_path": folder, "temperature": 0.7}
    args = {"policy": {**common, "max_new_tokens": 4}, "trainer": {**common, "learning_rate": 0.05}, "judge": {}}
    return {
        "models": {name: {"args": {**args.get(name, {}), **models.get(name, {})}} for name in {**args, **models}},
        "runtime": {
            "exp_name": "lora",
            "output_dir": str(output),
            "num_episode": 2,
            "sample_per_episode": 8,
            "generation_batch_size": 4,
            "train_micro_batch_size": 4,
            "train_global_batch_size": 8,
            "log_samples": 0,
            **runtime,
        },
    }


def engine_of(*, references: bool = False) -> tuple[Engine, PolicyInference, PolicyTrainer]:
    """Samples, judges and trains; ``references`` scores without the adapter too."""
    policy, judge, trainer = PolicyInference("policy"), Judge("judge"), PolicyTrainer("trainer")

    def env_flow(batch: Any) -> Any:
        samples = policy.forward_step(batch)
        return judge.forward_step(policy.reference_step(samples) if references else samples)

    engine = Engine(Environment(env_flow), Trainer(lambda batch: trainer.train_step(batch)))
    return engine.set_parameter_sync(trainer, policy).set_dataset(PROMPTS), policy, trainer
