"""Steps that start after others: what a trace records of ``with after(…)``, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from flow.flow_forms import toy_modules
from flow_cases import Model, calls, place

from chatlearn.errors import FlowError
from chatlearn.flow import BATCH, ControlDependencies, after, render, trace

policy, reference, reward, value = (Model(name) for name in ("policy", "reference", "reward", "value"))


def test_steps_inside_wait_for_the_named_values_without_reading_them():
    def flow(batch):
        first = policy.forward_step(batch)
        second = reference.forward_step(batch)
        with after(first, second):
            third = reward.forward_step(batch)
        return value.forward_step(third)

    graph = trace(flow)
    assert [node.after for node in graph] == [(), (), (0, 1), ()]
    assert graph.nodes[2].sources == (BATCH,)
    assert (graph.awaited, graph.used) == ({0, 1}, {BATCH, 2, 3})


def test_nested_blocks_add_up_and_end_with_the_block_an_exception_too():
    def flow(batch):
        a, b = policy.forward_step(batch), policy.eval_step(batch)
        with after(a):
            with after([b, a]):
                reward.forward_step(batch)
            reward.forward_step(batch)
        try:
            with after(a):
                raise KeyError("x")
        except KeyError:
            return reward.forward_step(batch)

    assert [node.after for node in trace(flow)] == [(), (), (0, 1), (0,), ()]


def test_lists_tuples_and_none_at_all():
    def flow(batch):
        outs = [policy.forward_step(batch) for _ in range(2)]
        with after(outs, (outs[0],)):
            reward.forward_step(batch)
        with after(*[]):
            return reward.forward_step(batch)

    assert [node.after for node in trace(flow)] == [(), (), (0, 1), ()]


def test_a_value_that_is_read_anyway_needs_no_waiting():
    def flow(batch):
        a, b = policy.forward_step(batch), policy.forward_step(batch)
        with after(a, b):
            return reward.forward_step(a)

    assert trace(flow).nodes[2].after == (1,)


def test_the_value_of_a_train_step_has_no_data_but_an_end():
    def flow(batch):
        trained = value.train_step(batch)
        with after(trained):
            policy.train_step(batch)

    graph = trace(flow)
    assert calls(graph) == [("value.train_step", "batch"), ("policy.train_step", "batch")]
    assert graph.nodes[1].after == (0,)


def test_the_former_name_is_the_same_class():
    assert ControlDependencies is after


def test_with_real_data_the_block_does_nothing():
    m = toy_modules()
    real = {"x": np.array([1.0])}
    with after(real, None, [real, None], 0.5) as entered:
        out = m.policy.eval_step(real)
    assert entered is None
    assert out["x"].tolist() == [-1.0]


def test_it_shows_in_the_text():
    def flow(batch):
        a = policy.forward_step(batch)
        with after(a):
            return reward.forward_step(batch)

    assert "reward.forward_step  <- batch  [after policy.forward_step]" in render(trace(flow))


def leaked_value():
    kept = []
    trace(lambda batch: kept.append(policy.forward_step(batch)))
    return kept[0]


REFUSED = {
    "batch": (lambda batch, out: after(batch), "names the batch, which is there before any step"),
    "poisoned": (lambda batch, out: after(out["x"]), r"given the output of policy.forward_step\['x'\], read at "),
    "poisoned inside": (lambda batch, out: after([out, out["x"]]), "name their outputs"),
    "real data": (lambda batch, out: after({"x": 1}), r"given \{'x': 1\}; it waits for outputs of steps"),
    "nothing": (lambda batch, out: after(out, None), "given None; it waits for outputs"),
    "module": (lambda batch, out: after(policy), "given the module 'policy'; it waits for outputs"),
    "step": (lambda batch, out: after(policy.forward_step), "it waits for outputs of steps"),
    "dict of values": (lambda batch, out: after({"out": out}), "it waits for outputs of steps"),
    "other flow": (lambda batch, out: after(leaked_value()), "of another flow; a value lives in the flow that made"),
    "outer flow": (lambda batch, out: trace(lambda inner: after(out)), "of another flow"),
}


@pytest.mark.parametrize(("use", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_wait_for_is_an_error_with_its_line(use, words):
    def flow(batch):
        with use(batch, policy.forward_step(batch)):
            return reward.forward_step(batch)

    with pytest.raises(FlowError, match=words) as caught:
        trace(flow)
    assert str(caught.value).startswith(f"{__file__}:{use.__code__.co_firstlineno}: after(…)")


def test_a_value_of_a_flow_that_has_returned_is_refused_outside_of_a_trace_too():
    with pytest.raises(FlowError, match="of another flow"):
        after(leaked_value())


def test_without_with_it_is_an_error_since_it_would_do_nothing():
    def flow(batch):
        out = policy.forward_step(batch)
        after(out)  # the mistake
        return reward.forward_step(batch)

    with pytest.raises(FlowError, match=r"Write `with chatlearn.after\(…\):`") as caught:
        trace(flow)
    assert str(caught.value).startswith(place(flow, "# the mistake"))
