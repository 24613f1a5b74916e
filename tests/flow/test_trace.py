"""Forms that a flow may have, and the graph that comes out; what is no flow.

What may be done with values is in test_symbols.py, what steps may be called with in test_arguments.py.
"""

from __future__ import annotations

import functools

import pytest
from flow_cases import Model, calls, outputs, place

from chatlearn import BaseModule, step
from chatlearn.errors import ChatLearnError, FlowError, MissingStepError
from chatlearn.flow import trace

policy, reference, value, reward = (Model(name) for name in ("policy", "reference", "value", "reward"))


def seed_flow(batch):
    policy_out = policy.forward_step(batch)
    ref_out = reference.forward_step(policy_out)
    value_out = value.forward_step(policy_out)
    reward_out = reward.forward_step(policy_out, ref_out, value_out)
    return reward_out  # noqa: RET504 - as the document has it


SEED_CALLS = [
    ("policy.forward_step", "batch"),
    ("reference.forward_step", "policy.forward_step"),
    ("value.forward_step", "policy.forward_step"),
    ("reward.forward_step", "policy.forward_step+reference.forward_step+value.forward_step"),
]


def test_the_environment_flow_of_the_seed_document():
    graph = trace(seed_flow)
    assert calls(graph) == SEED_CALLS
    assert outputs(graph) == ["reward.forward_step"]
    assert graph.name == "seed_flow"
    assert graph.where == place(seed_flow, "def seed_flow")
    assert graph.nodes[1].where == place(seed_flow, "reference.forward_step")


def test_nested_calls_in_a_return_give_the_same_graph():
    def flow(batch):
        out = policy.forward_step(batch)
        return reward.forward_step(out, reference.forward_step(out), value.forward_step(out))

    assert calls(trace(flow)) == SEED_CALLS


def test_a_lambda():
    graph = trace(lambda batch: reward.forward_step(policy.forward_step(batch)))
    assert calls(graph) == [("policy.forward_step", "batch"), ("reward.forward_step", "policy.forward_step")]


def test_functools_partial():
    def flow(first, last, batch):
        return last.forward_step(first.forward_step(batch))

    graph = trace(functools.partial(flow, policy, reward))
    assert [label for label, _ in calls(graph)] == ["policy.forward_step", "reward.forward_step"]
    assert (graph.name, graph.where) == ("flow", place(flow, "def flow"))


def test_a_closure_over_configuration_with_loop_and_if():
    def make(models, rounds, scored):
        def flow(batch):
            out = batch
            for model in models:
                for _ in range(rounds):
                    out = model.forward_step(out)
            if scored:
                out = reward.forward_step(out)
            return out

        return flow

    labels = [label for label, _ in calls(trace(make([policy, value], 2, True)))]
    assert labels == [
        "policy.forward_step", "policy.forward_step#1", "value.forward_step", "value.forward_step#1",
        "reward.forward_step",
    ]  # fmt: skip
    assert [label for label, _ in calls(trace(make([policy], 1, False)))] == ["policy.forward_step"]


def test_a_method_and_a_callable_object():
    class Flows:
        def __init__(self, model):
            self.model = model

        def environment(self, batch):
            return self.model.forward_step(batch)

        def __call__(self, batch):
            return self.model.eval_step(batch)

    flows = Flows(policy)
    method, whole = trace(flows.environment), trace(flows)
    assert (calls(method), method.name) == ([("policy.forward_step", "batch")], "environment")
    assert (calls(whole), whole.name) == ([("policy.eval_step", "batch")], "Flows")
    assert whole.where == f"{__file__}:{Flows.__call__.__code__.co_firstlineno}"


def test_a_decorated_flow():
    def noted(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args)

        return wrapper

    @noted
    def flow(batch):
        return policy.forward_step(batch)

    assert calls(trace(flow)) == [("policy.forward_step", "batch")]
    assert trace(flow).name == "flow"


def test_helper_functions_and_calls_without_modules_leave_no_trace():
    seen = []

    def scored(out):
        seen.append("called")
        return reward.forward_step(out)

    def flow(batch):
        sorted([3, 1, 2])
        return scored(policy.forward_step(batch))

    assert calls(trace(flow)) == [("policy.forward_step", "batch"), ("reward.forward_step", "policy.forward_step")]
    assert seen == ["called"]


def test_the_flow_runs_exactly_once_and_anew_for_each_trace():
    runs = []

    def flow(batch):
        runs.append(batch)
        return policy.forward_step(batch)

    first = trace(flow)
    assert len(runs) == 1
    assert calls(trace(flow)) == calls(first)


def test_the_same_module_by_any_step_any_number_of_times():
    def flow(batch):
        a = policy.forward_step(batch)
        b = policy.eval_step(a)
        c = policy.forward_step(b)
        return policy.compare(a, c)

    graph = trace(flow)
    assert calls(graph) == [
        ("policy.forward_step", "batch"),
        ("policy.eval_step", "policy.forward_step"),
        ("policy.forward_step#1", "policy.eval_step"),
        ("policy.compare", "policy.forward_step | policy.forward_step#1"),
    ]
    assert [node.occurrence for node in graph] == [0, 0, 1, 0]


def test_occurrences_count_per_module():
    other = Model("other")

    def flow(batch):
        return other.forward_step(policy.forward_step(batch)), policy.forward_step(batch), other.forward_step(batch)

    assert [(n.module.name, n.occurrence) for n in trace(flow)] == [
        ("policy", 0), ("other", 0), ("policy", 1), ("other", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (lambda batch, a, b: None, []),
        (lambda batch, a, b: b, ["reward.forward_step"]),
        (lambda batch, a, b: (b, a), ["reward.forward_step", "policy.forward_step"]),
        (lambda batch, a, b: [a, b], ["policy.forward_step", "reward.forward_step"]),
        (lambda batch, a, b: {"y": b, "x": a}, ["reward.forward_step", "policy.forward_step"]),
        (lambda batch, a, b: (batch, b), ["batch", "reward.forward_step"]),
        (lambda batch, a, b: (), []),
        (lambda batch, a, b: (a, a), ["policy.forward_step", "policy.forward_step"]),
    ],
    ids=["nothing", "value", "tuple", "list", "dict", "raw batch", "empty tuple", "twice"],
)
def test_forms_of_return(form, expected):
    def flow(batch):
        a = policy.forward_step(batch)
        return form(batch, a, reward.forward_step(a))

    assert outputs(trace(flow)) == expected


def test_the_value_of_a_train_step_may_be_returned_and_stands_for_nothing():
    def flow(batch):
        out = reward.forward_step(batch)
        return policy.train_step(out), out

    graph = trace(flow)
    assert calls(graph) == [("reward.forward_step", "batch"), ("policy.train_step", "reward.forward_step")]
    assert outputs(graph) == ["reward.forward_step"]


def test_passing_the_value_of_a_train_step_on_is_an_error():
    def flow(batch):
        trained = policy.train_step(batch)
        return reward.forward_step(trained)

    with pytest.raises(FlowError, match=r"train_step's value stands for nothing") as caught:
        trace(flow)
    assert str(caught.value).startswith(place(flow, "reward.forward_step"))


def test_returning_a_number_is_an_error():
    def flow(batch):
        policy.forward_step(batch)
        return 3

    with pytest.raises(FlowError, match=r"flow returns 3; it may return outputs of steps") as caught:
        trace(flow)
    assert str(caught.value).startswith(place(flow, "def flow"))


@pytest.mark.parametrize(
    "nest",
    [lambda out: (out, (out,)), lambda out: {"a": {"b": out}}, lambda out: [[out]]],
    ids=["tuple", "dict", "list"],
)
def test_results_inside_of_results_are_an_error(nest):
    with pytest.raises(FlowError, match="alone or in one tuple, list or dict"):
        trace(lambda batch: nest(policy.forward_step(batch)))


def test_after_a_trace_steps_run_on_real_data_again_after_a_failed_one_too():
    class Plain(BaseModule):
        def forward_step(self, data):
            return {"x": data["x"] + 1}

    plain = Plain("plain")
    trace(plain.forward_step)
    assert plain.forward_step({"x": 1}) == {"x": 2}
    with pytest.raises(FlowError):
        trace(lambda batch: plain.forward_step({"x": 1}))
    assert plain.forward_step({"x": 1}) == {"x": 2}


def test_a_step_that_the_class_does_not_define():
    class Frozen(BaseModule):
        def forward_step(self, data):
            return {}

    def flow(batch):
        frozen.train_step(batch)

    frozen = Frozen("frozen")
    with pytest.raises(MissingStepError, match=r"Frozen \(module 'frozen'\) has no train_step.*it has forward_step"):
        trace(flow)


def test_steps_by_mark_from_a_mixin_and_behind_a_decorator():
    def timed(function):
        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            return function(self, *args, **kwargs)

        return wrapper

    class Scores:
        @step
        def score(self, data):
            return {}

        def eval_step(self, data):
            return {}

    class Judge(Scores, BaseModule):
        @timed
        def forward_step(self, first, second, *, margin=0.0):
            return {}

        @timed
        @step
        def inner_mark(self, data):
            return {}

        @step
        @timed
        def outer_mark(self, data):
            return {}

    judge = Judge("judge")

    def flow(batch):
        a = judge.score(batch)
        b = judge.eval_step(a)
        c = judge.forward_step(a, b, margin=1)
        return judge.outer_mark(judge.inner_mark(c))

    assert calls(trace(flow)) == [
        ("judge.score", "batch"),
        ("judge.eval_step", "judge.score"),
        ("judge.forward_step", "judge.score | judge.eval_step"),
        ("judge.inner_mark", "judge.forward_step"),
        ("judge.outer_mark", "judge.inner_mark"),
    ]


def test_two_flows_of_the_same_modules_do_not_mix():
    leaked = []

    def first(batch):
        leaked.append(policy.forward_step(batch))

    def second(batch):
        reward.forward_step(batch, leaked[0])

    def third(batch):
        reward.forward_step(leaked[0])

    trace(first)
    with pytest.raises(FlowError, match="mixes values of two flows"):
        trace(second)
    with pytest.raises(FlowError, match="a flow that has returned"):
        trace(third)


def test_a_trace_inside_of_a_trace():
    inner = []

    def flow(batch):
        inner.append(trace(seed_flow))
        return policy.forward_step(batch)

    assert calls(trace(flow)) == [("policy.forward_step", "batch")]
    assert calls(inner[0]) == SEED_CALLS


async def coroutine(batch):
    return policy.forward_step(batch)


def generator(batch):
    yield policy.forward_step(batch)


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (lambda batch: None, "calls no step"),
        (lambda batch: batch, "calls no step"),
        (lambda: None, "a flow takes one batch"),
        (lambda a, b: None, "a flow takes one batch"),
        (generator, "a plain function that returns"),
        (coroutine, "a plain function that returns"),
        (policy, "A flow is a function of one batch"),
    ],
    ids=["empty", "identity", "no argument", "two arguments", "generator", "coroutine", "not callable"],
)
def test_what_is_no_flow(flow, words):
    with pytest.raises(FlowError, match=words) as caught:
        trace(flow)
    assert isinstance(caught.value, ChatLearnError)


def test_an_exception_of_the_flow_itself_passes_unchanged():
    def flow(batch):
        return policy.forward_step(batch)[{}["missing"]]

    with pytest.raises(KeyError, match="missing"):
        trace(flow)
