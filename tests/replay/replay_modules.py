"""Modules of a program whose samples are replayed: a policy over ten symbols that everything else depends on.

Prompts are digits. A group's responses are three symbols each; the rule rewards those that are the digit.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from chatlearn import BaseModule, Engine, GRPOEngine, TorchModule
from chatlearn.modules.advantage_estimator import AdvantageEstimator

RESPONSE = 3


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 10))


def logprobs_of(model: torch.nn.Module, prompts: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(model(prompts), -1)


class Policy(TorchModule):
    """Draws with the noise of the sample; ``tokens`` are the prompt's digit and the response."""

    def setup(self) -> None:
        self.model = network().eval()

    def build_dataset(self, prompts: Any, is_eval: bool = False) -> Any:
        return [{"digit": digit, "prompt": f"say {digit}"} for digit in prompts]

    @torch.no_grad()
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        logprobs = logprobs_of(self.model, data["digit"])
        noise = self.uniforms(self.batch.sample_ids, RESPONSE)
        response = torch.searchsorted(logprobs.exp().cumsum(-1), noise.clamp(max=0.999)).clamp(max=9)
        rows = torch.zeros(len(noise), 1)
        return {
            **data,
            "tokens": torch.cat([data["digit"].unsqueeze(1), response], 1),
            "attention_mask": torch.ones(len(noise), 1 + RESPONSE, dtype=torch.int64),
            "response_mask": torch.cat([rows, torch.ones(len(noise), RESPONSE)], 1),
            "logprobs": torch.cat([rows, logprobs.gather(1, response)], 1),
            "response": ["".join(map(str, row)) for row in response.tolist()],
        }


class Rule(BaseModule):
    """The share of symbols that are the digit. With ``REPLAY_TEST_DRIFT`` in the environment, a little more."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        hits = (data["tokens"][:, 1:] == data["digit"].unsqueeze(1)).float().mean(1)
        return {"rewards": hits + float(os.environ.get("REPLAY_TEST_DRIFT", "0"))}


class Learner(TorchModule):
    """Policy gradient with dropout and Adam."""

    def setup(self) -> None:
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)

    def train_step(self, data: list[dict[str, Any]]) -> None:
        for part in data:
            taken = logprobs_of(self.model, part["digit"]).gather(1, part["tokens"][:, 1:])
            loss = -(taken * part["advantages"][:, 1:]).mean()
            loss.backward()
            self.log("loss", loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_engine(prompts: Any = tuple(range(10)) * 4) -> Engine:
    """GRPO with dynamic sampling; the policy follows every second episode."""
    policy, learner = Policy("policy"), Learner("learner")
    engine = GRPOEngine(
        policy, None, Rule("rule"), learner, advantages=AdvantageEstimator("advantages"), drop_silent_groups=True
    )
    return engine.set_dataset(list(prompts))


def settings(**runtime: Any) -> dict[str, Any]:
    """Groups of four, refills, replayed experience, every second sync, a checkpoint every second episode."""
    values = {
        "exp_name": "symbols",
        "num_episode": 6,
        "sample_per_episode": 24,
        "num_inference_per_prompt": 4,
        "generation_batch_size": 8,
        "train_micro_batch_size": 4,
        "train_global_batch_size": 8,
        "max_refill_rounds": 3,
        "refill_round_size": 8,
        "max_replay_episode": 2,
        "save_episode_interval": 2,
        "log_samples": 12,
        **runtime,
    }
    return {"models": {"policy": {}, "rule": {}, "learner": {"sync_frequency": 2}}, "runtime": values}


PROGRAM = """\
import chatlearn
import replay_modules

chatlearn.init()
replay_modules.make_engine().learn()
"""
