"""Drawings: everything is there, nothing overlaps. How good it looks is not covered."""

from __future__ import annotations

import re
import time
from xml.etree import ElementTree

import pytest
from flow.flow_forms import FORMS, toy_modules
from flow_cases import Model

from chatlearn import BaseModule, step
from chatlearn.flow import Graph, after, svg, trace

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


class Agent(BaseModule):
    @step(expands=4)
    def sample(self, data, judge=None, text=""): ...

    @step
    def join(self, first, second, iteration=0): ...

    def forward_step(self, data): ...


agent, judge, policy, value = Agent("agent"), Agent("judge"), Model("policy"), Model("value")


def busy(batch):
    out = agent.sample(batch, [judge, policy], text='<&">')
    joined = judge.join(out, batch)
    with after(joined):
        a = policy.forward_step(batch, greedy=True, weight=0.5)
        b = value.forward_step(a, out, batch)
    c = agent.join(a, b)
    return c, out, batch, value.compare(batch, batch)


def train(batch):
    trained = value.train_step(batch)
    with after(trained):
        policy.train_step(batch)


def loop(batch):
    outs = [batch]
    for i in range(60):
        outs.append((policy, value)[i % 2].forward_step(outs[-1], outs[i // 2], batch))
    return outs[::7]


CASES = {form.name: form.make(toy_modules()) for form in FORMS} | {"busy": busy, "train": train, "loop": loop}


def drawn(graph: Graph) -> ElementTree.Element:
    root = ElementTree.fromstring(svg([graph]))
    found = root.find("svg:g[@class='flow']", NAMESPACE)
    assert found is not None
    return found


def boxes(flow: ElementTree.Element) -> dict[tuple[str, str], tuple[float, float, float, float]]:
    """(kind, key) -> left, top, right, bottom."""
    found = {}
    for group in flow.iter(f"{{{NAMESPACE['svg']}}}g"):
        if group.get("data-key") is not None:
            rect = group.find("svg:rect", NAMESPACE)
            x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
            found[group.get("class"), group.get("data-key")] = (x, y, x + width, y + height)
    return found


def edges(flow: ElementTree.Element) -> list[tuple[str, str, str]]:
    """(kind, from, to), sorted."""
    paths = flow.iter(f"{{{NAMESPACE['svg']}}}path")
    return sorted((p.get("class").removeprefix("edge "), p.get("data-from"), p.get("data-to")) for p in paths)


def points(path: str) -> list[tuple[float, float]]:
    """Points along a path of M, L and C commands, curves included (by their Bernstein form)."""
    found: list[tuple[float, float]] = []
    for command, rest in re.findall(r"([MLC])([^MLC]*)", path):
        numbers = [float(text) for text in rest.split()]
        ends = list(zip(numbers[::2], numbers[1::2], strict=True))
        if command == "C":
            a, (b, c, d) = found[-1], ends
            for i in range(1, 21):
                t, s = i / 20, 1 - i / 20
                found.append(
                    tuple(s**3 * a[k] + 3 * s * s * t * b[k] + 3 * s * t * t * c[k] + t**3 * d[k] for k in (0, 1))
                )
        elif command == "L":
            (x0, y0), (x1, y1) = found[-1], ends[0]
            found += [(x0 + (x1 - x0) * i / 20, y0 + (y1 - y0) * i / 20) for i in range(1, 21)]
        else:
            found += ends
    return found


def expected_edges(graph: Graph) -> list[tuple[str, str, str]]:
    name = {-1: "batch", **{node.index: str(node.index) for node in graph}}
    data = [("data", name[i], str(n.index)) for n in graph for refs in n.inputs.values() for i in dict.fromkeys(refs)]
    order = [("after", name[i], str(n.index)) for n in graph for i in n.after]
    calls = [("calls", str(n.index), client.name) for n in graph for client in n.clients]
    return sorted([*data, *order, *calls, *(("data", name[i], "yields") for i in set(graph.outputs))])


@pytest.mark.parametrize("flow", CASES.values(), ids=CASES)
def test_every_node_and_edge_is_there_once(flow):
    graph = trace(flow)
    picture = drawn(graph)
    expected = {("terminal", "batch"), *(("node", str(node.index)) for node in graph)}
    expected |= {("client", client.name) for node in graph for client in node.clients}
    expected |= {("terminal", "yields")} if graph.outputs else set()
    assert set(boxes(picture)) == expected
    assert edges(picture) == expected_edges(graph)


@pytest.mark.parametrize("flow", CASES.values(), ids=CASES)
def test_no_box_lies_on_another_and_all_lie_inside_of_the_card(flow):
    picture = drawn(trace(flow))
    found = list(boxes(picture).values())
    for i, (left, top, right, bottom) in enumerate(found):
        for other in found[:i]:
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
    card = picture.find("svg:rect[@class='card']", NAMESPACE)
    inner = picture.find("svg:g[@class='graph']", NAMESPACE)
    dx, dy = (float(text) for text in re.findall(r"[\d.]+", inner.get("transform")))
    assert min(box[0] for box in found) >= 0
    assert min(box[1] for box in found) >= 0
    assert max(box[2] for box in found) + dx <= float(card.get("width"))
    assert max(box[3] for box in found) + dy <= float(card.get("height"))


@pytest.mark.parametrize("flow", CASES.values(), ids=CASES)
def test_no_line_runs_through_a_box_and_each_joins_its_two(flow):
    picture = drawn(trace(flow))
    found = boxes(picture)
    by_key = {(kind == "client", key): box for (kind, key), box in found.items()}
    for path in picture.iter(f"{{{NAMESPACE['svg']}}}path"):
        calls = "calls" in path.get("class").split()
        source, target = by_key[False, path.get("data-from")], by_key[calls, path.get("data-to")]
        way = points(path.get("d"))
        assert way[0][0] == pytest.approx(source[2], abs=0.2)
        assert source[1] < way[0][1] < source[3]
        assert way[-1][0] == pytest.approx(target[0], abs=0.2)
        assert target[1] < way[-1][1] < target[3]
        for left, top, right, bottom in found.values():
            inside = [(x, y) for x, y in way if left + 1 < x < right - 1 and top + 1 < y < bottom - 1]
            assert not inside


def test_texts_are_escaped_and_say_what_is_special():
    texts = ["".join(text.itertext()) for text in drawn(trace(busy)).iter(f"{{{NAMESPACE['svg']}}}text")]
    for text in ("agent.sample", "text='<&\">'", "judge=[judge, policy]", "expands 4", "greedy=True", "first", "batch"):
        assert text in texts
    assert {"starts after", "calls as a client"} <= set(texts)


def test_odd_names_give_a_file_that_parses():
    odd = Model('a <b>&"c"\n\x01 # 数据')
    root = ElementTree.fromstring(svg([trace(lambda batch: odd.forward_step(batch))]))
    assert any('<b>&"c"' in "".join(text.itertext()) for text in root.iter(f"{{{NAMESPACE['svg']}}}text"))


def test_a_module_has_one_colour_in_all_flows_and_others_have_another():
    def other(batch):
        return value.forward_step(policy.forward_step(batch))

    root = ElementTree.fromstring(svg([trace(busy), trace(other), trace(train)]))
    fills: dict[str, set[str]] = {}
    for group in root.iter(f"{{{NAMESPACE['svg']}}}g"):
        if group.get("class") in ("node", "client"):
            label = group.find("svg:text[@class='label']", NAMESPACE).text.partition(".")[0]
            fills.setdefault(label, set()).add(group.find("svg:rect", NAMESPACE).get("fill"))
    assert fills.keys() == {"agent", "judge", "policy", "value"}
    assert all(len(each) == 1 for each in fills.values())
    assert len(set.union(*fills.values())) == 4


def test_cards_stand_below_each_other_inside_of_the_picture():
    root = ElementTree.fromstring(svg([trace(train), trace(busy)]))
    spans = []
    for flow in root.findall("svg:g[@class='flow']", NAMESPACE):
        _, top = (float(text) for text in re.findall(r"[\d.]+", flow.get("transform")))
        spans.append((top, top + float(flow.find("svg:rect", NAMESPACE).get("height"))))
    assert spans[0][1] < spans[1][0] < spans[1][1] < float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    titles = [text.text for text in root.iter(f"{{{NAMESPACE['svg']}}}text") if text.get("class") == "title"]
    assert titles == ["train", "busy"]


def test_nothing_is_loaded_from_elsewhere_and_styles_stay_inside():
    text = svg([trace(busy)])
    assert re.findall(r"(?:href=\"|src=\"|url\(|@import)([^\")]*)", text) == ["#chatlearn-arrow"] * text.count(
        "marker-end"
    )
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert all(line.startswith(".chatlearn-flow ") for line in style.strip().splitlines())


def test_a_flow_of_two_hundred_steps_takes_no_noticeable_time():
    def long(batch):
        out = batch
        for i in range(200):
            out = (policy, value)[i % 2].forward_step(out, batch)
        return out

    graph = trace(long)
    started = time.perf_counter()
    svg([graph])
    assert time.perf_counter() - started < 5  # 0.2 s; a method that is cubic in the steps takes a minute
