"""What the runs that are killed and resumed are made of: PPO with an actor, a critic, a policy that follows, a judge.

Everything that a resume can forget decides numbers here: weights of two trained models with dropout, AdamW and
schedules, a KL controller, weights that are older than the trainer's, running statistics in files of a module's own,
values that modules put for each other, noise by sample and from the global generators. The samples that are trained on
are recorded in order.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatlearn import BaseModule, TorchModule
from chatlearn.algorithms.advantages import gae
from chatlearn.algorithms.kl import AdaptiveKLController, kl_estimate
from chatlearn.algorithms.logprobs import token_logprobs
from chatlearn.algorithms.losses import policy_loss, value_loss

VOCABULARY = 11
LENGTH = 5
NUM_PROMPTS = 40


class Network(nn.Module):
    """Prompts ``[B]`` and responses ``[B, T]`` -> ``[B, T, out]``, from the prompt, the place, and the token before."""

    def __init__(self, out: int, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.prompts = nn.Embedding(NUM_PROMPTS, width)
        self.places = nn.Embedding(LENGTH, width)
        self.tokens = nn.Embedding(VOCABULARY + 1, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, out))

    def forward(self, prompts_B: Tensor, tokens_BT: Tensor) -> Tensor:
        first = torch.full_like(tokens_BT[:, :1], VOCABULARY)
        before = torch.cat([first, tokens_BT[:, :-1]], 1)
        return self.layers(self.prompts(prompts_B)[:, None] + self.places.weight + self.tokens(before))


class Marked(TorchModule):
    """Tells in ``<marks>/<name>.pid`` which process it runs in."""

    def setup(self) -> None:
        if marks := self.model_args.get("marks"):
            Path(marks, f"{self.name}.pid").write_text(str(os.getpid()))


class Policy(Marked):
    """Samples with noise of both kinds; its weights are those of the actor two episodes ago."""

    def setup(self) -> None:
        super().setup()
        self.model = Network(VOCABULARY).eval()

    def build_dataset(self, prompts: list[int]) -> list[dict[str, int]]:
        return [{"prompt": prompt} for prompt in prompts]

    @torch.no_grad()
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        noise_BT = self.uniforms(self.batch.sample_ids, LENGTH)
        tokens_BT = torch.zeros(len(data["prompt"]), LENGTH, dtype=torch.int64)
        for place in range(LENGTH):
            probs_BV = self.model(data["prompt"], tokens_BT)[:, place].softmax(-1)
            if place % 2:
                tokens_BT[:, place] = torch.multinomial(probs_BV, 1)[:, 0]
            else:
                chosen = (probs_BV.cumsum(-1) < noise_BT[:, place, None]).sum(-1)
                tokens_BT[:, place] = chosen.clamp(max=VOCABULARY - 1)
        logprobs_BT = token_logprobs(self.model(data["prompt"], tokens_BT), tokens_BT)
        return {**data, "tokens": tokens_BT, "logprobs": logprobs_BT, "response_mask": torch.ones_like(logprobs_BT)}

    @torch.no_grad()
    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        tokens_BT = torch.zeros(len(data["prompt"]), LENGTH, dtype=torch.int64)
        for place in range(LENGTH):
            tokens_BT[:, place] = self.model(data["prompt"], tokens_BT)[:, place].argmax(-1)
        return {**data, "tokens": tokens_BT}


class Judge(Marked):
    """Rewards, scaled by running statistics that it keeps in files of its own, less a KL penalty; and advantages."""

    stateful = True

    def setup(self) -> None:
        super().setup()
        self.model = Network(VOCABULARY).eval()
        self.count, self.mean, self.square = 0, 0.0, 0.0
        self.history: list[float] = []

    def save_checkpoint(self) -> None:
        counts = {"count": self.count, "mean": self.mean, "square": self.square}
        (self.checkpoint_path / "counts.json").write_text(json.dumps(counts))
        (self.checkpoint_path / "history").mkdir()
        (self.checkpoint_path / "history" / "rewards.txt").write_text("\n".join(map(str, self.history)))

    def load_checkpoint(self) -> None:
        counts = json.loads((self.checkpoint_path / "counts.json").read_text())
        self.count, self.mean, self.square = counts["count"], counts["mean"], counts["square"]
        self.history = [float(line) for line in (self.checkpoint_path / "history" / "rewards.txt").read_text().split()]

    @torch.no_grad()
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        raw_B = self._right(data).float().mean(1) + 0.01 * torch.rand(len(data["prompt"]))
        rewards_BT = torch.zeros_like(data["logprobs"])
        rewards_BT[:, -1] = (raw_B - self.mean) / (self.square / max(self.count, 1) + 1e-2) ** 0.5
        for value in raw_B.tolist():  # Welford 1962
            self.count += 1
            error = value - self.mean
            self.mean += error / self.count
            self.square += error * (value - self.mean)
            self.history = [*self.history[-50:], value]
        ref_BT = token_logprobs(self.model(data["prompt"], data["tokens"]), data["tokens"])
        kl_BT = kl_estimate(data["logprobs"], ref_BT, "k1")
        rewards_BT -= self.get("kl_coef", 0.1) * kl_BT
        mask_BT = data["response_mask"]
        advantages_BT, returns_BT = gae(rewards_BT, data["values"], mask_BT, gamma=1.0, lam=0.95)
        self.log("reward", raw_B.mean())
        self.log("scale", self.square)
        return {"rewards": raw_B, "kl": kl_BT, "advantages": advantages_BT, "returns": returns_BT}

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.log("right", self._right(data).float().mean())
        return {"prompt": data["prompt"]}

    @staticmethod
    def _right(data: dict[str, Any]) -> Tensor:
        return data["tokens"] == (data["prompt"][:, None] + torch.arange(LENGTH)) % VOCABULARY


class Record:
    """Which samples were trained on, in order; a part of the trainer's state."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"ids": torch.tensor(self.ids, dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ids = state["ids"].tolist()


class Trained(Marked):
    """A model with dropout, AdamW, a schedule, and the record of what it was trained on."""

    out = 1

    def setup(self) -> None:
        super().setup()
        self.model = Network(self.out, self.model_args.get("width", 32))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=40)
        self.record = Record()

    def train_step(self, data: list[dict[str, Any]]) -> None:
        self.optimizer.zero_grad()
        for part in data:
            (self.loss(part) / len(data)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.record.ids += self.batch.sample_ids
        self.log("lr", self.scheduler.get_last_lr()[0])

    def loss(self, part: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class Acting(Trained):
    """The policy in training; tells the judge how much the KL counts."""

    out = VOCABULARY

    def setup(self) -> None:
        super().setup()
        self.controller = AdaptiveKLController(0.1, target=0.05, horizon=200)

    def train_step(self, data: list[dict[str, Any]]) -> None:
        super().train_step(data)
        kl = sum(part["kl"].mean().item() for part in data) / len(data)
        self.put("kl_coef", self.controller.update(kl, sum(len(part["prompt"]) for part in data)))
        self.log("kl_coef", self.controller.coef)

    def loss(self, part: dict[str, Any]) -> Tensor:
        logprobs_BT = token_logprobs(self.model(part["prompt"], part["tokens"]), part["tokens"])
        loss, metrics = policy_loss(logprobs_BT, part["logprobs"], part["advantages"], part["response_mask"])
        for name, value in metrics.items():
            self.log(name, value)
        self.log("loss", loss.detach())
        return loss


class Actor(Acting):
    """The one that the program has."""


class OtherActor(Acting):
    """Another class of the same state."""


class Echo(BaseModule):
    """One module more; it counts what it has seen."""

    stateful = True

    def setup(self) -> None:
        self.record = Record()

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.record.ids += self.batch.sample_ids
        return {"rewards": data["rewards"]}


class Critic(Trained):
    """Values, with dropout in training alone."""

    @torch.no_grad()
    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.model.eval()
        values_BT = self.model(data["prompt"], data["tokens"])[..., 0]
        self.model.train()
        return {"values": values_BT}

    def loss(self, part: dict[str, Any]) -> Tensor:
        values_BT = self.model(part["prompt"], part["tokens"])[..., 0]
        loss = value_loss(values_BT, part["values"], part["returns"], part["response_mask"], clip=0.2)
        self.log("loss", loss.detach())
        return loss
