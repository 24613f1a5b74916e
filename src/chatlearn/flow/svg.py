"""Graphs as one self-contained SVG: a card per flow, boxes coloured by module.

Solid lines are data, dashed ones order (``after``), dotted ones lead to the clients of a step. The cards are white, so
that the drawing reads the same on light and on dark pages.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath
from typing import Any, NamedTuple

from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.layout import Box, Edge, Layout, Size, place
from chatlearn.flow.render import constants, reshaping

_MARGIN, _HEADER, _PADDING, _FOOTER = 16.0, 58.0, 28.0, 26.0
_LINE = 17.0
_PORT = 18.0
_MAX_LABEL, _MAX_PORT = 40, 12
_CHARACTER = {"label": 7.4, "note": 6.3}
"""Width of a narrow character, in pixels, on the safe side."""


class Colours(NamedTuple):
    """Of a box."""

    fill: str
    stroke: str


PALETTE = (
    Colours("#dbeafe", "#2563eb"), Colours("#dcfce7", "#16a34a"), Colours("#fef3c7", "#d97706"),
    Colours("#fae8ff", "#c026d3"), Colours("#fee2e2", "#dc2626"), Colours("#cffafe", "#0891b2"),
    Colours("#ede9fe", "#7c3aed"), Colours("#ecfccb", "#65a30d"), Colours("#ffedd5", "#ea580c"),
    Colours("#fce7f3", "#db2777"),
)  # fmt: skip
_TERMINAL = Colours("#f3f4f6", "#6b7280")

_RULES = {
    "text": 'font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; '
    "fill: #1f2937",
    ".card": "fill: #ffffff; stroke: #d0d7de",
    ".title": "font-size: 16px; font-weight: 600",
    ".where": "font-size: 11px; fill: #57606a",
    ".legend": "font-size: 11px; fill: #57606a",
    ".port": "font-size: 11px; fill: #57606a; paint-order: stroke; stroke: #ffffff; stroke-width: 4px; "
    "stroke-linejoin: round",
    ".label": "font-size: 13px; font-weight: 500",
    ".note": "font-size: 11px; fill: #4b5563",
    ".box": "stroke-width: 1.5",
    ".edge": "fill: none; stroke: #57606a; stroke-width: 1.5",
    ".after": "stroke-dasharray: 7 5",
    ".calls": "stroke-dasharray: 1.5 4.5; stroke-linecap: round; stroke-width: 2",
}
_STYLE = "\n".join(f".chatlearn-flow {selector} {{ {rule} }}" for selector, rule in _RULES.items())
"""Every rule is bound to our own class: styles of an inline SVG hold for the whole page."""

_ARROW = (
    '<defs><marker id="chatlearn-arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.5 L8 4 L0 7.5 z" fill="#57606a"/></marker></defs>'
)

_LEGEND = {"after": "starts after", "calls": "calls as a client"}


@dataclass
class _Drawing:
    """The boxes and lines of one graph, before they have places."""

    texts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    kinds: dict[str, str] = field(default_factory=dict[str, str])
    colours: dict[str, Colours] = field(default_factory=dict[str, Colours])
    hints: dict[str, str] = field(default_factory=dict[str, str])
    edges: list[Edge] = field(default_factory=list[Edge])
    ports: list[str] = field(default_factory=list[str])

    def box(self, key: str, kind: str, texts: Sequence[str], colours: Colours, hint: str = "") -> None:
        self.texts[key] = [_shortened(text, _MAX_LABEL) for text in texts]
        self.kinds[key], self.colours[key], self.hints[key] = kind, colours, hint

    def edge(self, source: str, target: str, kind: str, port: str = "") -> None:
        self.edges.append(Edge(source, target, kind))
        self.ports.append(port)

    def size(self, key: str) -> Size:
        label, *notes = self.texts[key]
        widths = [_width(label, "label"), *(_width(note, "note") for note in notes)]
        arriving = sum(edge.target == key for edge in self.edges)
        return Size(max(widths) + 28, max(_LINE * (1 + len(notes)) + 20, _PORT * (arriving + 1)))


def svg(graphs: Sequence[Graph]) -> str:
    """Draws graphs below each other, from left to right.

    Args:
        graphs: of the flows; a module has the same colour in all of them.

    Returns:
        The text of an SVG file. Boxes are ``g`` elements of the class ``node``, ``terminal`` or ``client`` with their
        ``data-key`` (the node's index, ``batch``, ``yields``, the client's name); lines are ``path`` elements of the
        class ``edge`` and ``data``, ``after`` or ``calls`` with ``data-from`` and ``data-to``.
    """
    names = list(dict.fromkeys(name for graph in graphs for name in graph.modules))
    colours = {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
    drawings = [_drawing(graph, colours) for graph in graphs]
    layouts = [place({key: each.size(key) for key in each.texts}, each.edges) for each in drawings]
    sizes = [_card_size(*each) for each in zip(graphs, drawings, layouts, strict=True)]
    widest, top = max((size.width for size in sizes), default=0.0), _MARGIN
    cards: list[str] = []
    for graph, drawing, layout, size in zip(graphs, drawings, layouts, sizes, strict=True):
        cards.append(f'<g class="flow" transform="translate({_MARGIN:g} {top:g})">')
        cards += _card(graph, drawing, layout, Size(widest, size.height))
        cards.append("</g>")
        top += size.height + _MARGIN
    width = widest + 2 * _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chatlearn-flow" width="{width:g}" height="{top:g}" '
            f'viewBox="0 0 {width:g} {top:g}" role="img">',
            f"<title>{_escaped(', '.join(graph.name for graph in graphs))}</title>",
            f"<style>{_STYLE}</style>",
            _ARROW,
            *cards,
            "</svg>\n",
        ]
    )


def _drawing(graph: Graph, colours: Mapping[str, Colours]) -> _Drawing:
    drawing = _Drawing()
    drawing.box("batch", "terminal", ["batch"], _TERMINAL)
    for node in graph:
        texts = [node.label, *constants(node), *reshaping(node)]
        drawing.box(str(node.index), "node", texts, colours[node.module.name], node.where)
        _add_inputs(drawing, node)
    if graph.outputs:
        drawing.box("yields", "terminal", ["yields"], _TERMINAL)
        for index in dict.fromkeys(graph.outputs):
            drawing.edge(_key(index), "yields", "data")
    clients: dict[str, Any] = {client.name: client for node in graph for client in node.clients}
    for name in clients:
        drawing.box(f"client {name}", "client", [name], colours[name])
    for node in graph:
        for client in node.clients:
            drawing.edge(_key(node.index), f"client {client.name}", "calls")
    return drawing


def _add_inputs(drawing: _Drawing, node: Node) -> None:
    for name, refs in node.inputs.items():
        for index in dict.fromkeys(refs):
            port = _shortened(name, _MAX_PORT) if len(node.inputs) > 1 else ""
            drawing.edge(_key(index), _key(node.index), "data", port)
    for index in node.after:
        drawing.edge(_key(index), _key(node.index), "after")


def _key(index: int) -> str:
    return "batch" if index == BATCH else str(index)


def _card_size(graph: Graph, drawing: _Drawing, layout: Layout) -> Size:
    legend = _FOOTER if _legend_kinds(drawing) else 0.0
    header = max(_width(graph.name, "label") * 1.3, _width(_place(graph.where), "note"))
    return Size(max(layout.width, header, 260.0) + 2 * _PADDING, _HEADER + layout.height + _PADDING + legend)


def _card(graph: Graph, drawing: _Drawing, layout: Layout, size: Size) -> list[str]:
    lines = [
        f'<rect class="card" width="{size.width:g}" height="{size.height:g}" rx="12"/>',
        f'<text class="title" x="{_PADDING:g}" y="28">{_escaped(graph.name)}</text>',
        f'<text class="where" x="{_PADDING:g}" y="44">{_escaped(_place(graph.where))}</text>',
        f'<g class="graph" transform="translate({_PADDING:g} {_HEADER:g})">',
    ]
    for edge, route, port in zip(drawing.edges, layout.routes, drawing.ports, strict=True):
        lines.append(_path(edge, route))
        if port:
            x, y = route[-1][0] - 10, route[-1][1] - 4
            lines.append(f'<text class="port" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{_escaped(port)}</text>')
    lines += [_box(drawing, key, box) for key, box in layout.boxes.items()]
    lines.append("</g>")
    return lines + _legend(drawing, size)


def _path(edge: Edge, route: Sequence[tuple[float, float, float, float]]) -> str:
    commands: list[str] = []
    end: tuple[float, float] | None = None
    for left, y, right, y_end in route:
        if end is None:
            commands.append(f"M{left:.1f} {y:.1f}")
        else:
            bend = (left - end[0]) / 2
            commands.append(f"C{end[0] + bend:.1f} {end[1]:.1f} {left - bend:.1f} {y:.1f} {left:.1f} {y:.1f}")
        commands.append(f"L{right:.1f} {y_end:.1f}")
        end = (right, y_end)
    source, target = (_escaped(key.removeprefix("client ")) for key in (edge.source, edge.target))
    return (
        f'<path class="edge {edge.kind}" data-from="{source}" data-to="{target}" d="{" ".join(commands)}" '
        f'marker-end="url(#chatlearn-arrow)"/>'
    )


def _box(drawing: _Drawing, key: str, box: Box) -> str:
    kind, colours, texts = drawing.kinds[key], drawing.colours[key], drawing.texts[key]
    radius = min(box.height / 2, 22.0) if kind == "terminal" else 9.0
    dashes = ' stroke-dasharray="1.5 4.5" stroke-linecap="round"' if kind == "client" else ""
    hint = f"<title>{_escaped(drawing.hints[key])}</title>" if drawing.hints[key] else ""
    first = box.middle - _LINE * (len(texts) - 1) / 2 + 4.5
    lines = "".join(
        f'<text class="{"note" if i else "label"}" x="{box.x + box.width / 2:.1f}" y="{first + i * _LINE:.1f}" '
        f'text-anchor="middle">{_escaped(text)}</text>'
        for i, text in enumerate(texts)
    )
    return (
        f'<g class="{kind}" data-key="{_escaped(key.removeprefix("client "))}">{hint}<rect class="box" '
        f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:.1f}" '
        f'fill="{colours.fill}" stroke="{colours.stroke}"{dashes}/>{lines}</g>'
    )


def _legend_kinds(drawing: _Drawing) -> list[str]:
    return [kind for kind in _LEGEND if any(edge.kind == kind for edge in drawing.edges)]


def _legend(drawing: _Drawing, size: Size) -> list[str]:
    x, y = _PADDING, size.height - 18
    lines: list[str] = []
    for kind in _legend_kinds(drawing):
        lines.append(f'<line class="edge {kind}" x1="{x:g}" y1="{y:g}" x2="{x + 36:g}" y2="{y:g}"/>')
        lines.append(f'<text class="legend" x="{x + 44:g}" y="{y + 4:g}">{_LEGEND[kind]}</text>')
        x += 44 + _width(_LEGEND[kind], "note") + 24
    return lines


def _place(where: str) -> str:
    """``file:line`` without the folder."""
    return PurePath(where).name


def _width(text: str, kind: str) -> float:
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return (len(text) + wide) * _CHARACTER[kind]


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _escaped(text: str) -> str:
    """Text for XML; characters that XML has no place for become replacement characters."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
