"""Models for flows of your own, in plain PyTorch.

The task: answer each letter of a word with the next letter of the alphabet ("flow" -> "gmpx").
A policy reads a letter and gives a distribution over letters, so a batch of B words of at most T letters has
``tokens``, ``logprobs``, ``values``, … of shape ``[B, T]``; entry t belongs to letter t, and ``mask`` is 1 where
there is a letter.

A flow passes on what it returns, and the flows of these programs return the output of their last step. So each
step returns what it got together with what it adds.

All modules are ``thread_safe``: chance comes from ``self.uniforms`` alone, where each sample has numbers of its own. So
with ``runtime_env.local_threads=3`` their steps run side by side, and no number changes.
"""

import torch
from torch import nn

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


def right_answers(query):
    """The next letters of the alphabet; a after z."""
    return torch.where(query == NUM_LETTERS - 1, 1, query + 1)


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


@torch.no_grad()
def answer(model, data, noise=None):
    """Adds the model's answers to a batch with ``query``: drawn with ``noise``, or the most likely ones."""
    mask = (data["query"] > 0).float()
    logits = model(data["query"])
    tokens = logits.argmax(-1) if noise is None else draw(logits, noise)
    tokens = tokens * mask.long()
    logprobs = token_logprobs(logits, tokens) * mask
    return {**data, "mask": mask, "tokens": tokens, "logprobs": logprobs, "response": [decode(row) for row in tokens]}


class LetterPolicy(RLHFTorchModule):
    """What policy and reference share. The one that a flow gives the raw batch to builds the data set."""

    thread_safe = True

    def setup(self):
        self.model = letter_model(NUM_LETTERS)

    def build_dataset(self, prompts):
        """Samples without a ``collate_fn`` of their own are stacked by PyTorch's."""
        return [{"prompt": word, "query": encode(word)} for word in prompts]

    def noise(self):
        """Numbers in (0, 1) for the letters of the current batch, ``[B, MAX_LETTERS]``."""
        return self.uniforms(self.batch.sample_ids, MAX_LETTERS)


class PolicyInference(LetterPolicy):
    """Answers words."""

    def forward_step(self, data, iteration=0):
        return answer(self.model, data, self.noise())

    def eval_step(self, data):
        return answer(self.model, data)


class PolicyReference(LetterPolicy):
    """Scores the answers of the policy; where a flow has no policy, it answers the words itself.

    With ``pretraining_steps`` it has learned the task before the run, so that others can learn from it.
    """

    def setup(self):
        super().setup()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        letters = torch.arange(1, NUM_LETTERS)
        for _ in range(self.model_args.get("pretraining_steps", 0)):
            nn.functional.cross_entropy(self.model(letters), right_answers(letters)).backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def forward_step(self, data, iteration=0):
        if "tokens" not in data:
            data = answer(self.model, data, self.noise())
        logprobs = token_logprobs(self.model(data["query"]), data["tokens"])
        return {**data, "ref_logprobs": logprobs * data["mask"]}

    def eval_step(self, data):
        data = answer(self.model, data)
        self.log("accuracy", masked_mean((data["tokens"] == right_answers(data["query"])).float(), data["mask"]))
        return data


class ValueInference(RLHFTorchModule):
    """The reward that can be expected from each letter on."""

    thread_safe = True

    def setup(self):
        self.model = letter_model(1)

    @torch.no_grad()
    def forward_step(self, data, iteration=0):
        return {**data, "values": self.model(data["query"]).squeeze(-1) * data["mask"]}


class RewardInference(RLHFTorchModule):
    """A rule: 1 for each letter that is right, less a penalty for leaving the reference. It needs no ``self.model``."""

    thread_safe = True

    def forward_step(self, data, iteration=0):
        """Gets what policy, reference and value returned, in one dict."""
        data = self.eval_step(data)
        kl = kl_estimate(data["logprobs"], data["ref_logprobs"], "k1")
        self.log("kl", masked_mean(kl, data["mask"]))
        rewards = data["rewards"] - self.model_args["kl_coef"] * kl
        advantages, returns = gae(rewards, data["values"], data["mask"], gamma=0.5, lam=0.9)
        return {**data, "advantages": advantages, "returns": returns}

    def eval_step(self, data):
        """Needs the answers only."""
        rewards = (data["tokens"] == right_answers(data["query"])) * data["mask"]
        self.log("reward", masked_mean(rewards, data["mask"]))
        return {**data, "rewards": rewards}


class PolicyTrainer(RLHFTorchModule):
    """Updates the policy with PPO; answers without ``advantages`` are taken as examples to imitate."""

    thread_safe = True

    def setup(self):
        self.model = letter_model(NUM_LETTERS)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.model_args["learning_rate"])

    def train_step(self, data, train_info):
        """One update: the gradients of the micro-batches add up to that of the mean over all letters."""
        num_letters = sum(batch["mask"].sum() for batch in data)
        for batch in data:
            logprobs = token_logprobs(self.model(batch["query"]), batch["tokens"])
            if "advantages" in batch:
                loss, _ = policy_loss_per_token(logprobs, batch["logprobs"], batch["advantages"], batch["mask"])
            else:
                loss = -logprobs * batch["mask"]
            (loss.sum() / num_letters).backward()
            self.log("loss", loss.detach().sum() / num_letters, "sum")
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
