"""Toy modules that succeed, fail and misbehave, and short ways to run them on a cluster."""

from __future__ import annotations

import bdb
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from chatlearn import BaseModule, step
from chatlearn.errors import DataError
from chatlearn.modules.base import describe
from chatlearn.runtime.base import Cluster, Handle
from chatlearn.runtime.calls import Metrics, ReplicaSettings, Rows, StepCall
from chatlearn.types import SampleIds, num_rows


class Echo(BaseModule):
    """Gives back what it got."""

    def forward_step(self, data):
        return data

    @step
    def join(self, first, second):
        return {"first": first["x"], "second": second["x"]}


class Counter(BaseModule):
    """Counts its calls, and takes its constructor's list for its own."""

    def __init__(self, name, log=()):
        super().__init__(name)
        self.log_of_calls = log if isinstance(log, list) else []

    def setup(self):
        self.log_of_calls.append("setup")

    def forward_step(self, data, iteration=0):
        self.log_of_calls.append(iteration)
        return {"count": [len(self.log_of_calls)] * len(data["x"])}

    def before_episode(self):
        self.log_of_calls.append("before_episode")
        return len(self.log_of_calls)


class Failing(BaseModule):
    """Raises in the place and in the way that it is told."""

    def __init__(self, name, where="forward_step", how="value"):
        super().__init__(name)
        self.where, self.how = where, how

    def setup(self):
        self._maybe("setup")

    def before_episode(self):
        self._maybe("before_episode")

    def build_dataset(self, prompts):
        self._maybe("build_dataset")
        return _Fragile(self, prompts)

    def forward_step(self, data, calm=False):
        if not calm:
            self._maybe("forward_step")
        return {"ok": [True] * len(data["x"])}

    def train_step(self, data, train_info):
        self._maybe("train_step")

    def _maybe(self, where):
        if where == self.where:
            raise {
                "value": ValueError("bad reward"),
                "data": DataError("no key 'tokens'"),
                "quit": bdb.BdbQuit(),
                "interrupt": KeyboardInterrupt(),
            }[self.how]


class _Fragile(list):
    def __init__(self, module, prompts):
        super().__init__({"prompt": prompt} for prompt in prompts)
        self.module = module

    def __getitem__(self, index):
        self.module._maybe("read")
        return super().__getitem__(index)

    def collate_fn(self, samples):
        self.module._maybe("collate")
        return dict(samples.items())


class Returning(BaseModule):
    """Returns what a function of its data makes."""

    def __init__(self, name, make):
        super().__init__(name)
        self.make = make

    def forward_step(self, data):
        return self.make(data)


class Copying(Returning):
    mutates_inputs = True


class Rolling(BaseModule):
    """Draws from every source of randomness that a step may use."""

    def __init__(self, name):
        super().__init__(name)
        self.at_construction = torch.rand(1).item()

    def setup(self):
        self.at_setup = torch.rand(1).item()

    def forward_step(self, data):
        return self._draw()

    @step
    def other(self, data):
        return self._draw()

    def before_episode(self):
        return torch.rand(1).item()

    def build_dataset(self, prompts):
        return _Dice(prompts)

    def _draw(self):
        rows = len(self.batch.sample_ids)
        return {
            "torch": torch.rand(rows),
            "numpy": np.random.rand(rows),
            "random": [random.random() for _ in range(rows)],
            "uniforms": self.uniforms(self.batch.sample_ids, 2),
        }


class _Dice(list):
    def __getitem__(self, index):
        return {"index": index, "torch": torch.rand(1).item()}


class Trainee(BaseModule):
    """Keeps what its train_step got."""

    def setup(self):
        self.seen = []

    def train_step(self, data, train_info):
        self.seen.append(([list(micro_batch["x"]) for micro_batch in data], train_info))
        self.log("rows", sum(len(micro_batch["x"]) for micro_batch in data), "sum")
        return "stands for nothing"

    def eval_step(self, data):
        self.log("loss", torch.tensor(float(sum(data["x"]))))
        self.seen.append((list(data["x"]), self.batch.sample_ids))
        return {"double": [2 * x for x in data["x"]]}


def settings(seed: int = 0, **changes: Any) -> ReplicaSettings:
    """Settings of a replica that nothing configures."""
    return ReplicaSettings(**{"seed": seed, "model_args": {}, "module_args": None, "runtime_args": None, **changes})


def spawn(cluster: Cluster, module: BaseModule, replica: int = 0, seed: int = 0, **changes: Any) -> Handle:
    """A replica, set up."""
    handle = cluster.spawn(describe(module), replica, settings(seed, **changes))
    cluster.get(cluster.call(handle, "setup"))
    return handle


def apply(cluster: Cluster, handle: Handle, function: Callable[..., Any], *args: Any) -> Any:
    """``function(module, *args)`` beside the replica."""
    return cluster.get(cluster.call(handle, "apply", function, *args))


def run_both(
    cluster: Cluster,
    handle: Handle,
    *batches: Any,
    step: str = "forward_step",
    parameters: Sequence[str] = ("data",),
    sample_ids: Sequence[int] | None = None,
    **call: Any,
) -> tuple[Any, Metrics]:
    """Runs a step and returns its output and metrics.

    Each batch is a dict, or the future of a list of micro-batches; they are merged where there is one parameter.
    """
    ids = tuple(range(num_rows(batches[0])) if sample_ids is None else sample_ids)
    values: dict[str, Any] = {
        "phase": "experience",
        "occurrence": 0,
        "index": 0,
        "constants": {},
        "run_parameters": {"iteration": 0},
        "ids": SampleIds(ids, tuple(i // 2 for i in ids)),
        **call,
    }
    given = tuple((Rows((batch,)),) if isinstance(batch, dict) else batch for batch in batches)
    if len(parameters) == 1:
        inputs = {parameters[0]: given}
    else:
        inputs = {name: (value,) for name, value in zip(parameters, given, strict=True)}
    output, report = cluster.call_pair(handle, "run", StepCall(step=step, **values), inputs)
    return cluster.get(output), cluster.get(report).metrics


def run(cluster: Cluster, handle: Handle, *batches: Any, **call: Any) -> Any:
    """Runs a step and returns its output."""
    return run_both(cluster, handle, *batches, **call)[0]
