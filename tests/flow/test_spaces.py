"""Which rows a value has: steps that expand or filter begin a new row space."""

from __future__ import annotations

import functools

import pytest
from flow_cases import place

from chatlearn import BaseModule, step
from chatlearn.errors import FlowError
from chatlearn.flow import BATCH, render, trace


class Rows(BaseModule):
    def forward_step(self, data): ...

    @step
    def join(self, first, second): ...

    @step(expands=4)
    def sample(self, data): ...

    @step(expands=True)
    def turns(self, data): ...

    @step(filters=True)
    def keep(self, data): ...

    @step(expands=1)
    def tag(self, data): ...


a, b = Rows("a"), Rows("b")


def test_what_a_step_declares_stands_on_its_node():
    def flow(batch):
        return a.tag(a.keep(a.turns(a.sample(a.forward_step(batch)))))

    assert [(n.step, n.expands, n.filters, n.reshapes) for n in trace(flow)] == [
        ("forward_step", None, False, False),
        ("sample", 4, False, True),
        ("turns", True, False, True),
        ("keep", None, True, True),
        ("tag", 1, False, True),
    ]


def test_the_declaration_survives_a_decorator():
    def noted(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    class Noted(BaseModule):
        @noted
        @step(expands=2)
        def sample(self, data): ...

    noted_module = Noted("noted")
    assert trace(noted_module.sample).nodes[0].expands == 2


def test_a_reshaping_step_begins_a_space_and_others_stay_in_that_of_their_inputs():
    def flow(batch):
        plain = a.forward_step(batch)  # 0
        many = a.sample(plain)  # 1
        scored = b.forward_step(many)  # 2
        kept = b.keep(scored)  # 3
        return b.join(kept, plain)  # 4: realigned

    graph = trace(flow)
    assert [graph.space(i) for i in (BATCH, 0, 1, 2, 3, 4)] == [BATCH, BATCH, 1, 1, 3, 3]
    assert [node.space for node in graph] == [BATCH, BATCH, 1, 1, 3]
    assert graph.lineage(3) == (3, 1, BATCH)
    assert graph.lineage(BATCH) == (BATCH,)
    assert graph.output_space == 3


def test_values_of_all_ancestors_may_be_read_and_returned_in_any_order():
    def flow(batch):
        many = a.sample(batch)
        kept = a.keep(many)
        out = b.forward_step(batch, kept, many)
        return batch, out, many

    graph = trace(flow)
    assert graph.nodes[2].space == 1
    assert graph.output_space == 1


def test_a_flow_that_yields_nothing_or_the_batch_is_in_the_space_of_the_batch():
    assert trace(lambda batch: (a.sample(batch), None)[1]).output_space == BATCH
    assert trace(lambda batch: (a.sample(batch), batch)[1]).output_space == BATCH


def siblings_merged(batch):
    one = a.sample(batch)
    other = b.keep(batch)
    return a.forward_step(one, other)


def siblings_apart(batch):
    one = a.sample(batch)
    other = b.keep(batch)
    return a.join(a.forward_step(one), b.forward_step(other))


def the_same_step_twice(batch):
    one = a.sample(batch)
    other = a.sample(batch)
    return b.join(one, other)


def siblings_below_one_ancestor(batch):
    many = a.turns(batch)
    one = a.keep(many)
    other = b.keep(many)
    return b.join(batch, b.join(one, other))


@pytest.mark.parametrize(
    "flow",
    [siblings_merged, siblings_apart, the_same_step_twice, siblings_below_one_ancestor],
    ids=lambda f: f.__name__,
)
def test_rows_that_come_from_two_reshaping_steps_cannot_be_matched(flow):
    with pytest.raises(FlowError, match="rows that can't be matched") as caught:
        trace(flow)
    text = str(caught.value)
    assert text.startswith(place(flow, "return"))
    assert f"({place(flow, 'one =')})" in text
    assert f"({place(flow, 'other =')})" in text


def test_a_flow_cannot_return_them_together_either():
    def flow(batch):
        one = a.sample(batch)
        other = b.keep(batch)
        return {"one": one, "other": b.forward_step(other)}

    with pytest.raises(FlowError, match="flow returns rows that can't be matched") as caught:
        trace(flow)
    assert place(flow, "one =") in str(caught.value)
    assert place(flow, "other =") in str(caught.value)


def test_it_shows_in_the_text():
    text = render(trace(lambda batch: a.keep(a.turns(a.sample(batch)))))
    assert [line.partition("  [")[2] for line in text.splitlines()[1:4]] == ["expands 4]", "expands]", "filters]"]
