"""Flows: plain functions over modules, traced into graphs."""

from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.render import render
from chatlearn.flow.trace import trace

__all__ = ["BATCH", "Graph", "Node", "render", "trace"]
