"""Modules and helpers for the tests of flows. No step in here is ever run: tracing calls none."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import chatlearn
from chatlearn.flow import BATCH, Graph


class Model(chatlearn.BaseModule):
    """Every step of its own fails when it runs, so a test that traces shows that none did."""

    def forward_step(self, data, iteration=0, greedy=False, weight=1.0):
        raise AssertionError("tracing runs no step")

    def eval_step(self, data):
        raise AssertionError("tracing runs no step")

    def train_step(self, data, train_info):
        raise AssertionError("tracing runs no step")

    @chatlearn.step
    def compare(self, first, second, *, margin=0.0):
        raise AssertionError("tracing runs no step")

    @chatlearn.step
    def gather(self, first, *rest):
        raise AssertionError("tracing runs no step")


def calls(graph: Graph) -> list[tuple[str, str]]:
    """Each node as (label, what it reads): names joined by + where merged, by | between parameters."""
    return [
        (node.label, " | ".join("+".join(graph.label(i) for i in refs) for refs in node.inputs.values()))
        for node in graph
    ]


def outputs(graph: Graph) -> list[str]:
    """Labels of what the flow yields."""
    return [graph.label(i) for i in graph.outputs]


def place(function: Callable, fragment: str) -> str:
    """``file:line`` of the only line of a function that holds the fragment."""
    lines, start = inspect.getsourcelines(function)
    (offset,) = (i for i, line in enumerate(lines) if fragment in line)
    return f"{function.__code__.co_filename}:{start + offset}"


__all__ = ["BATCH", "Model", "calls", "outputs", "place"]
