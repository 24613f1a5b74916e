"""Modules and stand-ins where nobody looks for them: what a flow passes as a constant, what a constructor is given."""

from __future__ import annotations

from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace

import pytest
from flow_cases import Model, place

from chatlearn import BaseModule, Engine, Environment, init
from chatlearn.errors import FlowError, ModuleError
from chatlearn.flow import trace

judge, policy = Model("judge"), Model("policy")
Pair = namedtuple("Pair", "first second")


class Agent(BaseModule):
    def forward_step(self, data, tool=None): ...


class Scores(BaseModule):
    """A module with a method that is no step."""

    def score_one(self, text): ...


agent, scores = Agent("agent"), Scores("scores")


@dataclass
class Box:
    content: object


@dataclass(slots=True)
class SlottedBox:
    content: object


class Slotted:
    __slots__ = ("content", "unset")

    def __init__(self, content):
        self.content = content


def by_default(data, module=judge): ...


def by_keyword_default(data, *, module=judge): ...


def by_global(data):
    return [judge.forward_step(part) for part in data]


def enclosing(value):
    return lambda data: value.forward_step(data)


def itself(value):
    entries: list[object] = [value]
    entries.append(entries)
    return entries


HIDING = {
    "partial": lambda value: partial(print, value),
    "keyword of a partial": lambda value: partial(print, sep=value),
    "partial of a partial": lambda value: partial(partial(print, 1), [value]),
    "dataclass": Box,
    "dataclass with slots": SlottedBox,
    "dataclass in a dataclass": lambda value: Box(Box((value,))),
    "dataclass in a dict": lambda value: {"a": [Box(value)]},
    "attribute": lambda value: SimpleNamespace(value=value),
    "list in an attribute": lambda value: SimpleNamespace(values=[1, value]),
    "slot": Slotted,
    "set": lambda value: {value},
    "frozen set": lambda value: frozenset([value]),
    "set in a list": lambda value: [1, {value}],
    "deque": lambda value: deque([value]),
    "key": lambda value: {value: 1},
    "tuple as a key": lambda value: {(value,): 1},
    "named tuple": lambda value: Pair(1, value),
    "ordered dict": lambda value: OrderedDict(a=value),
    "mapping proxy": lambda value: MappingProxyType({"a": value}),
    "closure": enclosing,
}
"""Places where a worker replaces no module by a client."""


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (judge, "holds the module 'judge'"),
        (judge.compare, r"holds judge\.compare, a method of the module 'judge'"),
        (scores.score_one, r"holds scores\.score_one, a method of the module 'scores'"),
    ],
    ids=["module", "bound step", "bound method"],
)
def test_a_module_that_would_not_arrive_as_a_client_is_refused_with_line_and_remedy(hide, value, words):
    def flow(batch):
        return agent.forward_step(batch, tool=hide(value))

    with pytest.raises(FlowError, match=words) as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{place(flow, 'return')}: agent.forward_step is given a ")
    assert "Pass the module itself as an argument" in str(caught.value)
    assert "inside the step call its steps" in str(caught.value)


BOUND = {
    "alone": lambda value: value,
    "in a list": lambda value: [value],
    "in a dict": lambda value: {"f": (value,)},
    "after the same list in the open": lambda value: ([judge], value),
    "in a list that holds itself": itself,
}


@pytest.mark.parametrize("wrap", BOUND.values(), ids=BOUND)
def test_a_bound_step_is_refused_where_its_module_would_be_a_client(wrap):
    with pytest.raises(FlowError, match=r"agent\.forward_step is given .*judge\.forward_step, a method of the module"):
        trace(lambda batch: agent.forward_step(batch, wrap(judge.forward_step)))


def test_a_list_of_modules_that_also_stands_in_a_hidden_place_is_refused():
    tools = [judge]
    with pytest.raises(FlowError, match="a dict that holds the module 'judge'"):
        trace(lambda batch: agent.forward_step(batch, tool={"a": tools, "b": Box(tools)}))


@pytest.mark.parametrize("function", [by_default, by_keyword_default, by_global])
def test_a_function_that_refers_to_a_module_is_refused(function):
    with pytest.raises(FlowError, match="is given a function that holds the module 'judge'"):
        trace(lambda batch: agent.forward_step(batch, tool=function))


def later():
    """A function whose variable is assigned after it is made, if ever."""

    def call():
        return value

    if not call:
        value = 1
    return call


HARMLESS = {
    "an attribute named like a global module": lambda data: data.judge,
    "a class of modules": Model,
    "a step of a class": Model.forward_step,
    "a dataclass of plain values": Box({"a": {1, 2}}),
    "an object that never set a slot": Slotted(3),
    "a partial of a plain function": partial(print, 1, sep=""),
    "a list that holds itself": SimpleNamespace(entries=itself(1)),
    "a method of a plain object": Slotted(judge).__repr__,
    "an object two levels down": SimpleNamespace(flows=SimpleNamespace(module=judge)),
    "a variable without a value": later(),
    "a module of Python": pytest,
}


@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_what_uses_no_module_stays_a_constant(value):
    (node,) = trace(lambda batch: agent.forward_step(batch, tool=value))
    assert node.constants["tool"] is value
    assert node.clients == ()


def unhashed(name):
    return name not in ("set", "frozen set", "set in a list", "key", "tuple as a key")


@pytest.mark.parametrize(
    "hide", [hide for name, hide in HIDING.items() if unhashed(name)], ids=filter(unhashed, HIDING)
)
def test_a_hidden_value_that_is_not_there_yet_names_the_line_of_its_read(hide):
    """The places left out take a hash, which a value that was read has none of (see test_symbols)."""

    def flow(batch):
        part = policy.forward_step(batch)["x"]
        return agent.forward_step(batch, tool=hide(part))

    with pytest.raises(FlowError, match="Pass the whole batch, and read from it inside the step") as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{place(flow, 'return')}: agent.forward_step is given the output of policy")
    assert f"['x'], read at {place(flow, 'part =')}" in str(caught.value)


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING)
def test_a_hidden_batch_is_to_be_an_argument_of_its_own(hide):
    with pytest.raises(FlowError, match=r"contains the batch\. Pass batches as arguments of their own"):
        trace(lambda batch: agent.forward_step(batch, tool=hide(batch)))


class Holder(BaseModule):
    def __init__(self, name, tool=None, *, tools=()):
        super().__init__(name)


@pytest.mark.parametrize("hide", [*HIDING.values(), lambda v: v, lambda v: [{"a": v}]], ids=[*HIDING, "alone", "list"])
@pytest.mark.parametrize("value", [judge, judge.forward_step], ids=["module", "bound step"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_module_in_the_arguments_of_a_constructor_is_refused(hide, value, by_name):
    def construct():
        return Holder("holder", tools=hide(value)) if by_name else Holder("holder", hide(value))

    with pytest.raises(ModuleError, match=r"the constructor of Holder is given .*the module 'judge'") as caught:
        construct()
    assert str(caught.value).startswith(f"{place(construct, 'return')}: ")
    assert "Pass the module in the flow, as a constant of the call" in str(caught.value)


def test_a_module_made_from_the_batch_of_a_flow_is_refused():
    with pytest.raises(ModuleError, match=r"is given the batch\['x'\], which holds no data.*outside of the flow"):
        trace(lambda batch: Holder("holder", batch["x"]).forward_step(batch))


@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_a_constructor_takes_what_uses_no_module(value):
    holder = Holder("holder", value)
    assert vars(holder)["_construction"] == (("holder", value), {})


def test_the_way_out_that_the_error_names_runs_the_replica_that_was_set_up():
    """The judge's answer is 7 only where its ``setup`` has run, with its section of the configuration."""
    seen = []

    class Judge(BaseModule):
        def setup(self):
            self.answer = self.model_args["answer"]

        def forward_step(self, data):
            return {"score": [self.answer] * len(data["prompt"])}

    class Asks(BaseModule):
        def forward_step(self, data, judge):
            scores = judge.forward_step(data)
            seen.extend(scores["score"])
            return scores

    asks, answers = Asks("asks"), Judge("answers")
    init(
        {
            "models": {"asks": {}, "answers": {"args": {"answer": 7}}},
            "runtime": {"num_episode": 1, "sample_per_episode": 2},
        }
    )
    with pytest.raises(FlowError, match="a method of the module 'answers'"):
        Environment(lambda batch: asks.forward_step(batch, judge=answers.forward_step))
    Engine(Environment(lambda batch: asks.forward_step(batch, judge=answers))).set_dataset(["a", "b"]).learn()
    assert seen == [7, 7]
