"""What a graph says about itself."""

from __future__ import annotations

import pytest
from flow_cases import BATCH, Model

from chatlearn.flow import trace

policy, reference, reward = Model("policy"), Model("reference"), Model("reward")


def flow(batch):
    out = policy.forward_step(batch)
    reference.forward_step(out)
    scored = reward.compare(out, batch)
    reward.compare(out, scored)
    return scored


@pytest.fixture
def graph():
    return trace(flow)


def test_modules_by_name_in_the_order_of_their_first_call(graph):
    assert dict(graph.modules) == {"policy": policy, "reference": reference, "reward": reward}
    assert list(graph.modules) == ["policy", "reference", "reward"]


def test_sources_of_a_node_without_repeats(graph):
    assert [node.sources for node in graph] == [(BATCH,), (0,), (0, BATCH), (0, 2)]
    twice = trace(lambda batch: reward.compare(batch, batch))
    assert twice.nodes[0].sources == (BATCH,)


def test_used_values_are_those_that_are_read_or_returned(graph):
    assert graph.used == {BATCH, 0, 2}


def test_indices_are_call_order_and_every_source_comes_earlier(graph):
    assert [node.index for node in graph] == [0, 1, 2, 3]
    assert all(source < node.index for node in graph for source in node.sources)


def test_the_root_is_the_first_node_that_takes_the_raw_batch(graph):
    assert graph.root is graph.nodes[0]
    second = trace(lambda batch: reward.compare(policy.forward_step(batch), batch))
    assert second.root.module is policy


def test_labels(graph):
    assert graph.label(BATCH) == "batch"
    assert [graph.label(i) for i in range(4)] == [
        "policy.forward_step", "reference.forward_step", "reward.compare", "reward.compare#1",
    ]  # fmt: skip
