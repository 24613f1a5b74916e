"""Parts of the programs that users write: a module, an engine around it, the command line."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import toys

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Trainer
from chatlearn.cli import main


class Echo(BaseModule):
    """Records that it started, and gives back what it gets."""

    def setup(self) -> None:
        toys.EVENTS.append((f"{self.name}.setup",))

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return data

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        return None


class NotYet(Echo):
    """Ends a program that should have been refused before it starts anything."""

    def setup(self) -> None:
        super().setup()
        raise AssertionError("the configuration was taken as right")


def module(name: str, **members: Any) -> Echo:
    """A module of a class with these methods and class attributes."""
    return type(name.capitalize(), (Echo,), members)(name)


def begin(folder: str = "runs", **runtime: Any) -> None:
    """A small configuration; two batches of samples in each of two episodes."""
    chatlearn.init(toys.settings(folder, **{"sample_per_episode": 8, "generation_batch_size": 4, **runtime}))


def engine_of(*modules: BaseModule, prompts: Any = ("a", "b", "c")) -> Engine:
    """An engine whose environment passes the batch through all modules."""

    def env_flow(batch: Any) -> Any:
        for module in modules:
            batch = module.forward_step(batch)
        return batch

    engine = Engine(Environment(env_flow))
    return engine if prompts is None else engine.set_dataset(prompts)


def learn(flow: Any) -> None:
    """Makes experience with a flow."""
    _name(flow, "env_flow")
    Engine(Environment(flow)).set_dataset(["a", "b", "c"]).learn()


def _name(flow: Any, name: str) -> None:
    """Messages call a flow by its name, which a lambda lacks."""
    if getattr(flow, "__name__", "") == "<lambda>":
        flow.__name__ = name


def train(flow: Any) -> None:
    """Trains on a data set with a flow."""
    _name(flow, "trainer_flow")
    Engine(None, Trainer(flow)).set_dataset(["a", "b", "c"]).learn()


def program(*words: str, config: Any = None, uses: BaseModule | None = None) -> None:
    """``python train.py WORDS``: a whole program, from ``init`` to ``learn`` with one module."""
    sys.argv = ["train.py", *words]
    chatlearn.init(config)
    engine_of(uses or NotYet("policy")).learn()


def command(*words: str) -> None:
    """``chatlearn WORDS``; the error that it prints is raised.

    Raises:
        ChatLearnError: of the printed kind, with the printed text.
    """
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        code = main(words)
    kind, _, text = printed.getvalue().removesuffix("\n").partition(": ")
    if code:
        raise getattr(chatlearn, kind)(text)
