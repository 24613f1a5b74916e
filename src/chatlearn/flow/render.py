"""A graph as text."""

from __future__ import annotations

from chatlearn.flow.graph import Graph


def render(graph: Graph) -> str:
    """One line a node, in call order: number, step, what it reads, its constants.

    >>> # env_flow(batch)
    >>> #   1  policy.forward_step  <- batch
    >>> #   2  reward.forward_step  <- policy.forward_step
    >>> #   => reward.forward_step
    """
    width = max(len(node.label) for node in graph)
    lines = [f"{graph.name}(batch)"]
    for node in graph:
        inputs = " | ".join(" + ".join(graph.label(i) for i in refs) for refs in node.inputs.values())
        constants = "".join(f", {name}={value!r}" for name, value in node.constants.items())
        lines.append(f"  {node.index + 1:>2}  {node.label:<{width}}  <- {inputs}{constants}")
    yields = " + ".join(graph.label(i) for i in graph.outputs) or "nothing"
    lines.append(f"  =>  {yields}")
    return "\n".join(lines)
