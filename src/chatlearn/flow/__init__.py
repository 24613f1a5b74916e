"""Flows: plain functions over modules, traced into graphs."""

from chatlearn.flow.contracts import Known, missing_reads, yields
from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.order import ControlDependencies, after
from chatlearn.flow.render import mermaid, render
from chatlearn.flow.svg import svg
from chatlearn.flow.trace import trace

__all__ = [
    "BATCH", "ControlDependencies", "Graph", "Known", "Node", "after", "mermaid", "missing_reads", "render", "svg",
    "trace", "yields",
]  # fmt: skip
