"""Modules that are given to steps of other modules."""

from __future__ import annotations

import pytest
from flow_cases import Model, place

from chatlearn import BaseModule, step
from chatlearn.errors import FlowError
from chatlearn.flow import BATCH, render, trace
from chatlearn.flow.clients import check_clients


class Agent(BaseModule):
    def forward_step(self, data, judge=None, tools=()): ...

    @step
    def ask(self, data, judge): ...

    @step
    def ask_all(self, data, *, judges): ...


agent, judge, critic, policy = Agent("agent"), Agent("judge"), Agent("critic"), Model("policy")


@pytest.mark.parametrize(
    ("flow", "constants", "clients"),
    [
        (lambda b: agent.forward_step(b, judge), {"judge": judge}, (judge,)),
        (lambda b: agent.forward_step(b, judge=judge), {"judge": judge}, (judge,)),
        (lambda b: agent.ask(b, judge), {"judge": judge}, (judge,)),
        (lambda b: agent.ask(judge=judge, data=b), {"judge": judge}, (judge,)),
        (lambda b: agent.ask_all(b, judges=[judge, critic]), {"judges": [judge, critic]}, (judge, critic)),
        (lambda b: agent.ask_all(b, judges={"a": judge}), {"judges": {"a": judge}}, (judge,)),
        (
            lambda b: agent.forward_step(b, critic, tools=({"a": [judge]}, critic)),
            {"judge": critic, "tools": ({"a": [judge]}, critic)},
            (critic, judge),
        ),
        (lambda b: agent.forward_step(b, judge=Agent, tools=["a"]), {"judge": Agent, "tools": ["a"]}, ()),
    ],
    ids=["position", "name", "without default", "names out of order", "list", "dict", "nested", "a class is no module"],
)
def test_a_module_stays_a_constant_and_is_a_client(flow, constants, clients):
    (node,) = trace(flow)
    assert dict(node.constants) == constants
    assert node.clients == clients
    assert dict(node.inputs) == {"data": (BATCH,)}


def test_clients_are_modules_of_the_graph_after_those_that_are_called():
    def flow(batch):
        out = agent.forward_step(batch, critic, tools=[judge])
        return judge.forward_step(policy.forward_step(out))

    assert list(trace(flow).modules.items()) == [
        ("agent", agent), ("policy", policy), ("judge", judge), ("critic", critic),
    ]  # fmt: skip


def test_clients_show_in_the_text_by_name():
    graph = trace(lambda b: agent.forward_step(b, judge, tools=[critic, {"k": (judge,)}]))
    assert render(graph).splitlines()[1] == (
        "   1  agent.forward_step  <- batch, judge=judge, tools=[critic, {'k': (judge,)}]  [calls judge, critic]"
    )


def test_a_module_without_a_batch_is_no_call_of_a_flow():
    with pytest.raises(FlowError, match=r"agent\.forward_step is called in the flow <lambda> with none of the flow's"):
        trace(lambda batch: agent.forward_step(judge))


def test_a_batch_inside_of_a_list_with_a_module_stays_refused():
    with pytest.raises(FlowError, match="Pass batches as arguments of their own"):
        trace(lambda batch: agent.ask_all(batch, judges=[judge, batch]))


def test_a_module_that_is_its_own_client():
    def flow(batch):
        return agent.forward_step(batch, tools=[agent])

    with pytest.raises(FlowError, match=r"given its own module as a client.*on `self`") as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{place(flow, 'tools=')}: agent.forward_step")


def test_modules_that_are_clients_of_each_other():
    def flow(batch):
        out = agent.forward_step(batch, judge)
        return judge.forward_step(out, agent)

    with pytest.raises(FlowError, match="each would wait for the other") as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{place(flow, 'return')}: judge.forward_step is given 'agent'")
    assert f"agent.forward_step is given 'judge' at {place(flow, 'out =')}" in str(caught.value)


def test_a_circle_of_three_and_one_across_two_flows():
    def three(batch):
        agent.forward_step(batch, judge)
        critic.forward_step(batch, agent)
        policy.forward_step(batch)
        judge.forward_step(batch, critic)

    with pytest.raises(FlowError) as caught:
        trace(three)
    for line in ("agent.forward_step(", "critic.forward_step(", "judge.forward_step("):
        assert place(three, line) in str(caught.value)
    one, other = trace(lambda b: agent.forward_step(b, judge)), trace(lambda b: judge.forward_step(b, agent))
    check_clients([*one, *one])
    with pytest.raises(FlowError, match="each would wait"):
        check_clients([*one, *other])


def test_clients_of_clients_without_a_circle():
    def flow(batch):
        agent.forward_step(batch, judge, tools=[critic])
        judge.forward_step(batch, critic)
        critic.forward_step(batch)

    assert [node.clients for node in trace(flow)] == [(judge, critic), (critic,), ()]


def test_a_constant_that_contains_itself_is_refused():
    circle: list[object] = []
    circle.append({"inside": circle})
    with pytest.raises(FlowError, match=r"test_clients\.py:\d+: a list that contains itself"):
        trace(lambda batch: agent.forward_step(batch, tools=circle))
