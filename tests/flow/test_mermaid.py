"""Graphs as Mermaid flowcharts. The parser of Mermaid itself is not run."""

from __future__ import annotations

import re

import pytest
from flow.flow_forms import FORMS, toy_modules
from flow_cases import Model

from chatlearn import BaseModule, step
from chatlearn.flow import after, mermaid, trace

policy, value = Model("policy"), Model("value")


class Agent(BaseModule):
    @step(expands=4)
    def sample(self, data, judge=None, text=""): ...


def test_a_flow_line_by_line():
    agent = Agent("agent")

    def env_flow(batch):
        out = agent.sample(batch, value)
        with after(out):
            other = policy.forward_step(batch, greedy=True)
        return policy.compare(out, other), out

    assert mermaid(trace(env_flow)).splitlines() == [
        "---",
        'title: "env_flow"',
        "---",
        "flowchart LR",
        "  batch([batch])",
        '  n0["agent.sample<br/>judge=value<br/>expands 4"]',
        '  n1["policy.forward_step<br/>greedy=True"]',
        '  n2["policy.compare"]',
        '  c0{{"value"}}',
        "  batch --> n0",
        "  n0 -. calls .-> c0",
        "  batch --> n1",
        "  n0 -. after .-> n1",
        '  n0 -- "first" --> n2',
        '  n1 -- "second" --> n2',
        "  yields([yields])",
        "  n2 --> yields",
        "  n0 --> yields",
    ]


def test_a_flow_that_yields_nothing_has_no_end():
    def trainer_flow(batch):
        value.train_step(batch)

    assert "yields" not in mermaid(trace(trainer_flow))


def test_what_mermaid_takes_for_markup_is_escaped():
    odd = Model('a "b" <c> `d` #e;\nf')
    agent = Agent("agent")
    lines = mermaid(trace(lambda batch: agent.sample(odd.forward_step(batch), text='"]; x'))).splitlines()
    assert lines[1] == 'title: "<lambda>"'
    assert lines[5] == '  n0["a #quot;b#quot; #lt;c#gt; #96;d#96; #35;e; f.forward_step"]'
    assert lines[6] == """  n1["agent.sample<br/>text='#quot;]; x'<br/>expands 4"]"""


LINES = [
    r"(batch|yields)\(\[\1\]\)",
    r'n\d+\["[^"<>]*(<br/>[^"<>]*)*"\]',
    r'c\d+\{\{"[^"<>]+"\}\}',
    r'(batch|n\d+) (-->|-- "\*?\w+" -->|-\. (after|calls) \.->) (n\d+|c\d+|yields)',
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_line_is_a_box_or_an_arrow_between_boxes(form):
    lines = mermaid(trace(form.make(toy_modules()))).splitlines()[4:]
    assert all(any(re.fullmatch(f"  {pattern}", line) for pattern in LINES) for line in lines)
    boxes = {line.split("(")[0].split("[")[0].split("{")[0].strip() for line in lines if not re.search(r" -[-.]", line)}
    ends = {end for line in lines if re.search(r" -[-.]", line) for end in (line.split()[0], line.split()[-1])}
    assert ends <= boxes
