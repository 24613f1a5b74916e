"""Every form of a flow gives the numbers of a plain evaluation: the flow called with real data, so that steps just run.

The graph is run by the few lines below, so this shows that the graph is right, not that an engine runs it well.
"""

from __future__ import annotations

import numpy as np
import pytest
from flow.flow_forms import FORMS, Form, toy_modules

from chatlearn.flow import BATCH, Graph, trace


def run(graph: Graph, batch: dict) -> dict:
    """What the graph yields: each node's step, called in order with real data."""
    values = {BATCH: batch}
    for node in graph:
        inputs = {name: merged(values[i] for i in refs) for name, refs in node.inputs.items()}
        variadic = [value for name, value in inputs.items() if name.startswith("*")]
        first = [inputs.pop(name) for name in list(inputs) if variadic and not name.startswith("*")]
        named = {name: value for name, value in inputs.items() if not name.startswith("*")}
        values[node.index] = getattr(node.module, node.step)(*first, *variadic, **named, **node.constants)
    return merged(values[i] for i in graph.outputs)


def merged(batches) -> dict:
    return {key: value for batch in batches for key, value in batch.items()}


def plain(flow, batch: dict) -> dict:
    """The flow, just called."""
    result = flow(batch)
    if isinstance(result, dict) and not isinstance(next(iter(result.values())), dict):
        return result
    return merged(result.values() if isinstance(result, dict) else result)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_graph_gives_the_numbers_of_a_plain_evaluation(form: Form, capsys):
    batch = {"x": np.array([1.0, -2.0, 30.0]), "extra": np.array([5.0, 0.0, 7.0])}
    flow = form.make(toy_modules())
    graph = trace(flow)
    result, expected = run(graph, batch), plain(flow, batch)
    assert list(result) == list(expected)
    assert {key: value.tolist() for key, value in result.items()} == {k: v.tolist() for k, v in expected.items()}
    assert [node.module.name for node in graph] == form.steps.split()


def test_there_are_many_and_names_differ():
    assert len({form.name for form in FORMS}) == len(FORMS) >= 40


def test_a_number_by_hand():
    """One value of the table, worked out on paper, so that the toy steps themselves are what they say."""
    (nested,) = (form for form in FORMS if form.name == "nested calls")
    result = run(trace(nested.make(toy_modules())), {"x": np.array([1.0])})
    # policy: x 2, policy 1; reference: x 6, reference 1*1 + 2*2 = 5; merged with the batch: x 1, reference 5
    # reward: x 5, reward 1*5 + 2*1 = 7
    assert {key: value.tolist() for key, value in result.items()} == {"x": [5.0], "reward": [7.0]}
