"""What the runs that are disturbed are made of: a rollout that samples, a reward, a trainer with an optimizer's state.

Everything that a replica has to be told before it can take another's place is in them: noise by sample and from the
global generator, a data set on replica 0, weights by sync, a shared value, a hook of the life cycle, batches above
Ray's inline limit.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import chatlearn
from chatlearn import BaseModule, TorchModule

NUM_PROMPTS = 40
WIDTH = 256


def network() -> torch.nn.Module:
    """16 features -> the mean of an action."""
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))


def features(prompts: torch.Tensor) -> torch.Tensor:
    """``[B] int64`` -> ``[B, 16] float32``."""
    return torch.sin(prompts.float()[:, None] * torch.arange(1, 17) / NUM_PROMPTS)


class Rollout(TorchModule):
    """Acts with noise of both kinds, scaled by a value that the trainer puts."""

    def setup(self) -> None:
        self.model = network()

    def build_dataset(self, prompts: list[int]) -> list[dict[str, int]]:
        return [{"prompt": prompt} for prompt in prompts]

    def before_episode(self) -> None:
        self.log("started", 1.0)

    @torch.no_grad()
    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        mean = self.model(features(data["prompt"]))[:, 0]
        noise = self.uniforms(self.batch.sample_ids, 1)[:, 0] - 0.5 + 0.1 * torch.randn(len(mean))
        time.sleep(self.model_args.get("seconds", 0.0))
        self.log("iteration", iteration)
        action = mean + noise * self.get("scale", 1.0)
        return {"prompt": data["prompt"], "action": action, "trace": action[:, None].repeat(1, 16 * WIDTH)}

    @torch.no_grad()
    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": data["prompt"], "action": self.model(features(data["prompt"]))[:, 0]}


class Reward(BaseModule):
    """The closer an action is to a function of the prompt, the better."""

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        rewards = self._rewards(data)
        self.log("reward", rewards.mean())
        return {"target": data["action"] - rewards, "rewards": rewards, "prompt": data["prompt"]}

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.log("reward", self._rewards(data).mean())
        return {"action": data["action"]}

    def _rewards(self, data: dict[str, Any]) -> torch.Tensor:
        return -((data["action"] - torch.sin(data["prompt"] / 7)) ** 2)


class Learner(TorchModule):
    """Fits the rewarded actions; its Adam makes each update depend on all before it."""

    def setup(self) -> None:
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        self.optimizer.zero_grad()
        for part in data:
            error = self.model(features(part["prompt"]))[:, 0] - part["trace"].mean(1)
            loss = (error**2 * part["rewards"].exp()).mean()
            loss.backward()
            self.log("loss", loss)
        self.optimizer.step()
        self.put("scale", 1.0 / (1 + train_info["episode"]))

    @chatlearn.step
    def weights(self, data: dict[str, Any]) -> dict[str, Any]:
        """All weights in one row, for comparisons bit by bit."""
        return {"weights": torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])[None]}
