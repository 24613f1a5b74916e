"""Six small models for PPO in plain PyTorch.

The task: answer each letter of a word with the next letter of the alphabet ("test" -> "uftu").
A policy reads a letter and gives a distribution over letters, so a batch of B words of at most T letters has
``tokens``, ``logprobs``, ``values``, … of shape ``[B, T]``; entry t belongs to letter t, and ``mask`` is 1 where
there is a letter.

All modules are ``thread_safe``: chance comes from ``self.uniforms`` alone, where each sample has numbers of its own. So
with ``runtime_env.local_threads=3`` their steps run side by side, and no number changes.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from chatlearn import RLHFTorchModule
from chatlearn.algorithms.advantages import gae
from chatlearn.algorithms.kl import kl_estimate
from chatlearn.algorithms.logprobs import token_logprobs
from chatlearn.algorithms.losses import policy_loss_per_token, value_loss_per_token
from chatlearn.algorithms.masking import masked_mean

NUM_LETTERS = 27  # 0 is padding, 1 to 26 are a to z
MAX_LETTERS = 8


def encode(word):
    """A word of small letters as ``[MAX_LETTERS]`` int64, padded with 0."""
    letters = [ord(letter) - ord("a") + 1 for letter in word[:MAX_LETTERS]]
    return torch.tensor(letters + [0] * (MAX_LETTERS - len(letters)))


def decode(letters):
    """The word that :func:`encode` was given."""
    return "".join(chr(letter + ord("a") - 1) for letter in letters.tolist() if letter)


def letter_model(num_outputs):
    """A network ``[B, T]`` letters -> ``[B, T, num_outputs]``, whose outputs are 0 at the start."""
    model = nn.Sequential(nn.Embedding(NUM_LETTERS, 32), nn.Linear(32, num_outputs))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return model


def draw(logits, noise):
    """Letters ``[B, T]``, drawn from ``logits`` ``[B, T, V]`` by inverting the cumulative distribution at ``noise``
    ``[B, T]``, numbers in (0, 1).
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    letters = (cumulative < noise.unsqueeze(-1)).sum(-1)
    return letters.clamp(max=NUM_LETTERS - 1)  # rounding may leave the last sum below 1


class PromptDataset(Dataset):
    """
    A custom dataset to construct batched prompts.
    """

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, idx):
        return {"query": self.data[idx]}

    def collate_fn(self, samples):
        batched_data = {}
        for sample_key, sample_value in samples.items():
            batched_data[sample_key] = torch.stack(sample_value)
        return batched_data


class PolicyInference(RLHFTorchModule):
    thread_safe = True

    def __init__(self, name):
        """
        Args:
            name: model name
        """

    def setup(self):
        self.model = letter_model(NUM_LETTERS)

    @torch.no_grad()
    def forward_step(self, data, iteration=0):
        """Answers each letter with one that it draws."""
        mask = (data["query"] > 0).float()
        logits = self.model(data["query"])
        tokens = draw(logits, self.uniforms(self.batch.sample_ids, MAX_LETTERS)) * mask.long()
        return {
            "query": data["query"],
            "mask": mask,
            "tokens": tokens,
            "logprobs": token_logprobs(logits, tokens) * mask,
            "response": [decode(row) for row in tokens],
        }

    def build_dataset(self, train_prompts):
        """The words as tensors, so that they can be stacked."""
        return PromptDataset([encode(word) for word in train_prompts])


class PolicyReference(RLHFTorchModule):
    """The policy as it was at the start; the reward keeps the policy near to it."""

    thread_safe = True

    def setup(self):
        self.model = letter_model(NUM_LETTERS)

    @torch.no_grad()
    def forward_step(self, data, iteration=0):
        logprobs = token_logprobs(self.model(data["query"]), data["tokens"])
        return {"ref_logprobs": logprobs * data["mask"]}


class ValueInference(RLHFTorchModule):
    """The reward that can be expected from each letter on."""

    thread_safe = True

    def setup(self):
        self.model = letter_model(1)

    @torch.no_grad()
    def forward_step(self, data, iteration=0):
        return {"values": self.model(data["query"]).squeeze(-1) * data["mask"]}


class RewardInference(RLHFTorchModule):
    """A rule: 1 for each letter that is right, less a penalty for leaving the reference. It needs no ``self.model``."""

    thread_safe = True

    def __init__(self, name):
        self.letter_a, self.letter_z = 1, NUM_LETTERS - 1

    def setup(self):
        self.kl_coef = self.model_args["kl_coef"]

    def forward_step(self, data, iteration=0):
        """Gets what policy, reference and value returned, in one dict; returns all that the trainers need."""
        mask = data["mask"]
        wanted = torch.where(data["query"] == self.letter_z, self.letter_a, data["query"] + 1)
        rewards = (data["tokens"] == wanted) * mask
        kl = kl_estimate(data["logprobs"], data["ref_logprobs"], "k1")
        advantages, returns = gae(rewards - self.kl_coef * kl, data["values"], mask, gamma=0.5, lam=0.9)
        self.log("reward", masked_mean(rewards, mask))
        self.log("kl", masked_mean(kl, mask))
        return {**data, "rewards": rewards.sum(1), "advantages": advantages, "returns": returns}


class PolicyTrainer(RLHFTorchModule):
    thread_safe = True

    def setup(self):
        self.model = letter_model(NUM_LETTERS)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.model_args["learning_rate"])

    def train_step(self, data, train_info):
        """One update: the gradients of the micro-batches add up to that of the mean over all letters."""
        num_letters = sum(batch["mask"].sum() for batch in data)
        for batch in data:
            logprobs = token_logprobs(self.model(batch["query"]), batch["tokens"])
            loss, metrics = policy_loss_per_token(logprobs, batch["logprobs"], batch["advantages"], batch["mask"])
            (loss.sum() / num_letters).backward()
            self.log("clip_frac", metrics["clip_frac"].sum() / num_letters, "sum")
        self.optimizer.step()
        self.optimizer.zero_grad()


class ValueTrainer(RLHFTorchModule):
    """Fits the values to the returns."""

    thread_safe = True

    def setup(self):
        self.model = letter_model(1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.model_args["learning_rate"])

    def train_step(self, data, train_info):
        num_letters = sum(batch["mask"].sum() for batch in data)
        for batch in data:
            values = self.model(batch["query"]).squeeze(-1)
            loss = value_loss_per_token(values, batch["values"], batch["returns"], batch["mask"], clip=0.2)
            (loss.sum() / num_letters).backward()
            self.log("loss", loss.detach().sum() / num_letters, "sum")
        self.optimizer.step()
        self.optimizer.zero_grad()
