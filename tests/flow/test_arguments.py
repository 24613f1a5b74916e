"""What a step is called with in a flow: data by position or by name, merged or apart, and constants."""

from __future__ import annotations

import pytest
from flow_cases import Model

from chatlearn import BaseModule
from chatlearn.errors import FlowError
from chatlearn.flow import BATCH, trace

policy, value, reward = (Model(name) for name in ("policy", "value", "reward"))


def test_one_data_parameter_gets_its_inputs_merged_several_get_them_apart():
    def flow(batch):
        a = policy.forward_step(batch)
        reward.forward_step(a, batch)
        return reward.compare(a, batch)

    _, merged, apart = trace(flow)
    assert dict(merged.inputs) == {"data": (0, BATCH)}
    assert dict(apart.inputs) == {"first": (0,), "second": (BATCH,)}


def test_data_by_name():
    def flow(batch):
        a = policy.forward_step(data=batch)
        return reward.compare(second=batch, first=a)

    first, second = trace(flow)
    assert dict(first.inputs) == {"data": (BATCH,)}
    assert list(second.inputs.items()) == [("first", (0,)), ("second", (BATCH,))]


def test_any_number_of_data_arguments_stay_apart():
    def flow(batch):
        a, b = policy.forward_step(batch), value.forward_step(batch)
        return reward.gather(batch, a, b)

    assert list(trace(flow).nodes[-1].inputs.values()) == [(BATCH,), (0,), (1,)]


def test_data_for_a_parameter_with_a_default():
    class Judge(BaseModule):
        def forward_step(self, data, context=None):
            return {}

    judge = Judge("judge")
    graph = trace(lambda batch: judge.forward_step(batch, context=policy.forward_step(batch)))
    assert dict(graph.nodes[-1].inputs) == {"data": (BATCH,), "context": (0,)}


def test_plain_arguments_are_constants_of_the_node():
    weights = {"a": [1, 2]}

    def flow(batch):
        a = policy.forward_step(batch, greedy=True, weight=weights)
        b = policy.forward_step(batch)
        return reward.compare(a, b, margin=0.5)

    graph = trace(flow)
    assert [dict(node.constants) for node in graph] == [{"greedy": True, "weight": weights}, {}, {"margin": 0.5}]
    assert [node.inputs.keys() for node in graph] == [{"data"}, {"data"}, {"first", "second"}]


def test_a_constant_by_position():
    class Scaled(BaseModule):
        def forward_step(self, data, factor=1, shift=0):
            return {}

    scaled = Scaled("scaled")
    assert dict(trace(lambda batch: scaled.forward_step(batch, 3, 4)).nodes[0].constants) == {"factor": 3, "shift": 4}


WRONG_ARGUMENTS = {
    "unknown name": (lambda b: policy.forward_step(b, gready=True), r"no parameter 'gready'; it has .*greedy"),
    "twice": (lambda b: policy.forward_step(b, data=b), r"gets 'data' twice"),
    "too many": (lambda b: reward.compare(b, b, b), r"takes first, second, but gets 3"),
    "too few": (lambda b: reward.compare(b), r"without its parameter 'second'"),
    "constant first": (lambda b: policy.forward_step(1, b), r"pass batches first"),
    "iteration": (lambda b: policy.forward_step(b, iteration=3), r"'iteration', which chatlearn fills in"),
    "iteration by position": (lambda b: policy.forward_step(b, 3), r"'iteration', which chatlearn fills in"),
    "train_info": (lambda b: policy.train_step(b, train_info={}), r"'train_info', which chatlearn fills in"),
}


@pytest.mark.parametrize(("flow", "words"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_arguments_that_do_not_fit_the_step_are_errors_with_their_line(flow, words):
    with pytest.raises(FlowError, match=words) as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{__file__}:{flow.__code__.co_firstlineno}: ")


WITHOUT_A_VALUE = {
    "nothing": (lambda batch: policy.forward_step(), "is called without its parameter 'data'"),
    "nothing to train on": (lambda batch: policy.train_step(), "is called without its parameter 'data'"),
    "real data": (lambda batch: policy.forward_step({"x": 1}), "with none of the flow's values"),
    "real data by name": (lambda batch: policy.compare(first={}, second={}), "with none of the flow's values"),
    "no arguments at all": (lambda batch: reward.gather({}), "with none of the flow's values"),
}


@pytest.mark.parametrize(("use", "words"), WITHOUT_A_VALUE.values(), ids=WITHOUT_A_VALUE)
def test_a_step_called_in_a_flow_without_any_of_its_values_does_not_run(use, words):
    def flow(batch):
        use(batch)
        return policy.forward_step(batch)

    with pytest.raises(FlowError, match=words) as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{__file__}:{use.__code__.co_firstlineno}: ")
