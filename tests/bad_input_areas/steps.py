"""Bad steps: what they return, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, engine_of, learn, module

import chatlearn
from chatlearn import ModuleError, StepError

CAUSES = Causes()
cause = CAUSES.cause

PLACE = "policy[0].forward_step (episode 1, batch 0)"
RAISED = "policy[0].forward_step, rank 0, episode 1, batch 0"
"""Where a first call stands in messages: of what it returns, and of what it raises."""


class Judge(Echo):
    """Drops rows, and says of them what it is told to."""

    rows: Any = None

    @chatlearn.step(filters=True)
    def keep_good(self, data: dict[str, Any]) -> dict[str, Any]:
        """Keeps two samples."""
        kept = {"text": data["prompt"][:2]}
        return kept if self.rows is None else {**kept, "source_rows": self.rows}

    @chatlearn.step
    def ask(self, data: dict[str, Any], other: Any) -> dict[str, Any]:
        """Has another module do what it can't."""
        return other.rank(data)


def steps(**members: Any) -> None:
    """A flow through a module with these methods, and another one that reads its output."""
    engine_of(module("policy", **members), Echo("reward")).learn()


def returns(value: Any) -> None:
    """The same, with a step that returns this."""
    steps(forward_step=lambda self, data: value)


# -- What steps return -------------------------------------------------------------------------------------------------


@cause(StepError, says="returns nothing, but the flow uses its output", at=PLACE, fix="Return a dict with the keys")
def returns_nothing() -> None:
    """A step returns nothing."""
    returns(None)


@cause(
    StepError,
    says="returns Tensor",
    at=PLACE,
    fix="a step returns a dict from names to batch-first tensors, arrays or lists",
)
def returns_no_dict() -> None:
    """A step returns no dict."""
    returns(torch.zeros(4))


@cause(
    StepError,
    says="'score' has 3 rows where 4 are expected",
    at=PLACE,
    fix="every value has one row per sample of the batch, in the same order",
)
def fewer_rows() -> None:
    """A step returns fewer rows than it got."""
    returns({"text": ["a", "b", "c", "d"], "score": torch.zeros(3)})


@cause(StepError, says="'loss' is Tensor without rows", at=PLACE, fix="self.log('loss', …)")
def no_rows() -> None:
    """A step returns one number for the whole batch."""
    returns({"loss": torch.tensor(0.5)})


@cause(StepError, says="the key 0 is not a string", at=PLACE, fix="Give every value of a batch a name")
def number_as_key() -> None:
    """A step returns a dict with numbers as keys."""
    returns({0: ["a", "b", "c", "d"]})


@cause(StepError, says="'x' is a tensor of layout torch.sparse_coo", at=PLACE, fix="Return x.to_dense()")
def sparse_tensor() -> None:
    """A step returns a sparse tensor."""
    returns({"x": torch.eye(4).to_sparse()})


@cause(
    StepError,
    says="filters, so its output has to hold 'source_rows'",
    at="judge[0].keep_good (episode 1, batch 0)",
    fix="for each of its rows the number of the input row that it comes from",
)
def no_source_rows() -> None:
    """A step drops rows and does not say which are left."""
    judge = Judge("judge")
    learn(lambda batch: judge.keep_good(batch))


@cause(
    StepError,
    says="source_rows has [0, 7]",
    at="judge[0].keep_good (episode 1, batch 0)",
    fix="the input has the rows 0 to 3",
)
def wrong_source_rows() -> None:
    """A step that drops rows names one that it did not get."""
    judge = type("Wrong", (Judge,), {"rows": [0, 7]})("judge")
    learn(lambda batch: judge.keep_good(batch))


# -- What steps do -----------------------------------------------------------------------------------------------------


@cause(
    StepError,
    says="KeyError: 'answer'",
    at=(RAISED, "sample ids [0, 1, 2, 3]"),
    fix="The traceback of the module's own code stands above",
)
def raising_step() -> None:
    """A step raises an exception of its own."""
    steps(forward_step=lambda self, data: {"score": data["answer"]})


@cause(
    StepError,
    says="FileNotFoundError",
    at="policy[0].setup, rank 0",
    fix="The traceback of the module's own code stands above",
)
def raising_setup() -> None:
    """`setup` raises an exception of its own."""
    steps(setup=lambda self: Path("model.bin").read_bytes())


@cause(
    StepError,
    says="reward[0].forward_step changes its input 'score' in place",
    at="episode 1, batch 0",
    fix=("work on a copy (`x = x.clone()`)", "set `mutates_inputs = True` on the class"),
)
def tensor_changed_in_place() -> None:
    """A step writes into a tensor that it was given."""
    policy = module("policy", forward_step=lambda self, data: {"score": torch.ones(4)})
    reward = module("reward", forward_step=lambda self, data: {"score": data["score"].mul_(2)})
    engine_of(policy, reward).learn()


@cause(
    StepError,
    says="ValueError: assignment destination is read-only",
    at="reward[0].forward_step, rank 0, episode 1, batch 0",
    fix="The traceback of the module's own code stands above",
)
def array_changed_in_place() -> None:
    """A step writes into an array that it was given."""
    policy = module("policy", forward_step=lambda self, data: {"score": np.ones(4)})
    reward = module("reward", forward_step=lambda self, data: data["score"].fill(2.0))
    engine_of(policy, reward).learn()


@cause(
    StepError,
    says="needs 'tokens', but its input has 'prompt'",
    at=PLACE,
    fix="Call the step that makes it earlier in the flow, and pass or return its output",
)
def key_missing_at_run_time() -> None:
    """A batch lacks a key that a module reads."""
    steps(reads=frozenset({"tokens"}))


@cause(
    StepError,
    says="policy.log('kl'): reduction is 'mean', 'sum', 'max' or 'min', not 'average'",
    at=RAISED,
    fix="reduction is 'mean', 'sum', 'max' or 'min'",
)
def unknown_reduction() -> None:
    """A metric is to be reduced in an unknown way."""
    steps(forward_step=lambda self, data: self.log("kl", 0.1, "average"))


@cause(
    StepError,
    says="policy.log('kl'): a metric is one number, got Tensor [4]",
    at=RAISED,
    fix="a metric is one number",
)
def metric_of_many_numbers() -> None:
    """A metric is a tensor of many numbers."""
    steps(forward_step=lambda self, data: self.log("kl", torch.zeros(4)))


@cause(
    ModuleError,
    says="is logged with the reduction 'mean' and with 'sum'",
    at="The metric policy/kl",
    fix="Log one of the two under another name",
)
def two_reductions() -> None:
    """A metric is logged with two reductions."""

    def forward_step(self: Echo, data: dict[str, Any]) -> dict[str, Any]:
        self.log("kl", 0.1)
        self.log("kl", 0.1, "sum")
        return data

    steps(forward_step=forward_step)


@cause(
    StepError,
    says="policy.put: the key is a string, got 3",
    at=RAISED,
    fix="the key is a string",
)
def number_put() -> None:
    """A value is put under a key that is no string."""
    steps(forward_step=lambda self, data: self.put(3, "temperature"))


@cause(
    StepError,
    says="critic.rank is no step of it",
    at="judge[0].ask, rank 0, episode 1, batch 0",
    fix="steps to call: forward_step",
)
def client_without_the_step() -> None:
    """A step calls another module's step that isn't there."""
    judge, critic = Judge("judge"), Echo("critic")
    learn(lambda batch: judge.ask(batch, other=critic))
