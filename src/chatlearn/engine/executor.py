"""Runs a flow over batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from chatlearn.data.stream import Experience
from chatlearn.engine.deployment import Call, Deployment
from chatlearn.engine.prompts import ahead
from chatlearn.errors import ChatLearnError, FlowError
from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.trace import trace
from chatlearn.guards import is_sequence
from chatlearn.modules.base import merge_batches
from chatlearn.runtime.base import Future
from chatlearn.runtime.calls import Report, Rows
from chatlearn.runtime.rows import gathered, leaves, taken, whole
from chatlearn.types import Batch, SampleIds


class Executor:
    """A traced flow and the order in which its calls go out.

    Args:
        flow: a plain function of one batch over modules; see :func:`chatlearn.flow.trace`.

    Raises:
        FlowError: the flow can't be traced.
    """

    def __init__(self, flow: Callable[[Any], Any]) -> None:
        self.graph: Graph = trace(flow)

    def batch_size(self, deployment: Deployment) -> int:
        """Samples drawn at a time: the largest generation batch of the flow's modules; smaller ones get pieces of
        it.
        """
        return max(deployment.batch_size(node.module.name) for node in self.graph)

    def fetched(
        self, deployment: Deployment, batches: Iterable[tuple[Future, SampleIds]]
    ) -> Iterator[tuple[Future, SampleIds]]:
        """Batches, with as many fetched beyond the one that is asked for as may be in flight: a replica that fetches
        does so in the order of its calls, so that later ones would stand behind what it makes of earlier ones.
        """
        window = deployment.window(self.graph.modules)
        return ahead(batches, window if window > 1 else 0)

    def run(
        self,
        deployment: Deployment,
        batches: Iterable[tuple[Future, SampleIds]],
        *,
        phase: str,
        counters: dict[str, int],
        place: str,
        is_eval: bool = False,
        lost: dict[int, int] | None = None,
    ) -> Iterator[Experience]:
        """Runs the flow on batches.

        As many are in flight as the cluster can use. One whose step makes or drops rows stops behind that step until
        the rows are counted, and later ones go on meanwhile. They come out complete, in their order; one that is
        complete comes out before the next is taken.

        Args:
            deployment: of the modules.
            batches: the raw batches, and the ids of their rows.
            phase: ``experience`` or ``eval``.
            counters: module -> batches that it has been given before; moved on as these are given to it.
            place: words for errors.
            is_eval: passed to steps whose signature has ``is_eval``.
            lost: index of a node -> input rows that none of its output rows comes from; added to.

        Yields:
            What the flow yields for each batch, and the ids of its rows.
        """
        terms = _Terms(self.graph, deployment, phase, counters, place, is_eval, {} if lost is None else lost)
        counters |= {node.module.name: counters.get(node.module.name, 0) for node in self.graph}
        window = deployment.window(self.graph.modules)
        passes: deque[_Pass] = deque()
        for batch, ids in batches:
            passes.append(_Pass(terms, batch, ids, passes[-1] if passes else None))
            if (made := _first(passes, waits=len(passes) >= window)) is not None:
                yield made
        while passes and (made := _first(passes, waits=True)) is not None:
            yield made


def _first(passes: deque[_Pass], waits: bool) -> Experience | None:
    """Moves all passes on, and takes the first one out if it is complete; ``waits`` until it is, and what comes in
    meanwhile moves the others on.
    """
    while True:
        for each in passes:
            each.advance()
        if not (missing := passes[0].missing()):
            made = passes.popleft().made()
            if passes:
                passes[0].before = None
            return made
        if not waits:
            return None
        others = [report for each in list(passes)[1:] for report in each.reports]
        passes[0].cluster.wait([*missing, *others], 1 if others else len(missing))


@dataclass(frozen=True)
class _Terms:
    """What the passes of one run have in common; see :meth:`Executor.run`."""

    graph: Graph
    deployment: Deployment
    phase: str
    counters: dict[str, int]
    place: str
    is_eval: bool
    lost: dict[int, int]


class _Pass:
    """One batch on its way through a flow: what each value stands for, and which rows there are in each row space.

    Attributes:
        before: the pass of the batch before, until that comes out.
        reports: those without which it has stopped.
    """

    def __init__(self, terms: _Terms, batch: Future, ids: SampleIds, before: _Pass | None) -> None:
        self.before = before
        self.reports: list[Future] = []
        self.cluster = terms.deployment.cluster
        self._terms, self._graph = terms, terms.graph
        self._turn = next(terms.deployment.turns)
        self._ids = {BATCH: ids}
        self._left = deque(terms.graph)
        self._uncounted = [node for node in terms.graph if node.reshapes]
        self._values: dict[int, tuple[Rows, ...]] = {BATCH: whole(batch, len(ids))}
        self._calls: dict[int, list[Call]] = {}
        self._num_calls: dict[str, int] = {}
        self._source_rows: dict[int, list[int]] = {}
        self._sources: tuple[Any, ...] | None = None

    def advance(self) -> None:
        """Sends out all calls that can go out, and counts the rows that have been made; waits for nothing.

        Raises:
            ChatLearnError: a step has failed whose rows are to be counted, and no earlier batch is in flight.
        """
        self._count()
        while self._left and self._may_go(self._left[0]):
            self._send(self._left.popleft())
            self._count()

    def missing(self) -> list[Future]:
        """What this pass waits for if it is the first one; nothing where it is complete."""
        if self._left or self._uncounted:
            return self.reports
        if self._sources is None:
            self._sources = self._outputs()
        return self._missing(future for source in self._sources for future in leaves(source))

    def made(self) -> Experience:
        """What the flow yields, where nothing is missing."""
        makers = [call.handle for index in self._graph.outputs for call in self._calls.get(index, ())]
        assert self._sources is not None
        return Experience(self._sources, self._ids[self._graph.output_space], next(iter(makers), None))

    def _missing(self, futures: Iterable[Future]) -> list[Future]:
        asked = list(futures)
        return self.cluster.wait(asked, 0)[1] if asked else []

    def _may_go(self, node: Node) -> bool:
        """Its rows are counted, and the modules that it calls have all their calls of the batch before: so each gets
        its calls in one order, which numbers them too, whatever the timing.
        """
        if node.space not in self._ids:
            return False
        earlier = self.before._left if self.before is not None else ()
        return all(_called(node).isdisjoint(_called(other)) for other in earlier)

    def _send(self, node: Node) -> None:
        """Runs a node on its rows."""
        terms, name, rows = self._terms, node.module.name, self._ids[node.space]
        begin = terms.counters[name]
        calls: list[Call] = []
        for part in rows.pieces(terms.deployment.batch_size(name)):
            piece = None if len(part) == len(rows) else part
            iteration = begin + len(calls)
            calls.append(
                terms.deployment.run(
                    node,
                    {index: self._rows(index, node.space, piece) for index in node.sources},
                    rows if piece is None else rows.take(piece),
                    phase=terms.phase,
                    index=iteration,
                    place=f"{terms.place}, batch {iteration}",
                    run_parameters={"iteration": iteration, "is_eval": terms.is_eval},
                    used=node.index in self._graph.used,
                    after=tuple(call.report for index in node.after for call in self._calls[index]),
                    turn=self._turn,
                )
            )
        self._calls[node.index] = calls
        if not node.reshapes:
            self._values[node.index] = tuple(Rows((call.output,), range(call.num_rows)) for call in calls)
        self._num_calls[name] = max(self._num_calls.get(name, 0), len(calls))
        if all(other.module.name != name for other in self._left):
            terms.counters[name] = begin + self._num_calls[name]

    def _count(self) -> None:
        """Begins the row spaces of the steps that have said how many rows they made."""
        self.reports = []
        for node in [node for node in self._uncounted if node.index in self._calls]:
            calls = self._calls[node.index]
            if missing := self._missing(call.report for call in calls):
                self.reports += missing
                continue
            try:
                reports: list[Report] = [self.cluster.get(call.report) for call in calls]
            except ChatLearnError:
                if self.before is None:
                    raise
                return  # it is raised when no earlier batch can have failed
            self._uncounted.remove(node)
            self._begin_space(node, [report.source_rows or () for report in reports])

    def _begin_space(self, node: Node, made: Sequence[Sequence[int]]) -> None:
        """Begins the row space of a node.

        Args:
            node: expands or filters.
            made: by call, the input row that each row of the output comes from.
        """
        calls, ids, lost = self._calls[node.index], self._ids[node.space], self._terms.lost
        offsets = accumulate((call.num_rows for call in calls), initial=0)
        rows = [offset + row for offset, source in zip(offsets, made, strict=False) for row in source]
        value = tuple(Rows((call.output,), range(len(part))) for call, part in zip(calls, made, strict=True))
        if num_lost := len(ids) - len(set(rows)):
            lost[node.index] = lost.get(node.index, 0) + num_lost
        after = ids.take(rows) if node.filters else ids.expanded(rows)
        if (order := after.together()) is not None:
            rows, after, value = [rows[row] for row in order], after.take(order), taken(value, order)
        self._source_rows[node.index], self._ids[node.index], self._values[node.index] = rows, after, value

    def _outputs(self) -> tuple[Any, ...]:
        """What the flow yields, in the deepest row space among its values: futures, and Rows where a value lies in
        several pieces or gives some of its rows.
        """
        space = self._graph.output_space
        if not len(self._ids[space]):
            return ()
        return tuple(_simplest(self._rows(index, space, None)) for index in self._graph.outputs)

    def _rows(self, index: int, space: int, piece: range | None) -> tuple[Rows, ...]:
        """The rows of a value that stand for those of a later space, or for a piece of them."""
        value, rows = self._values[index], self._path(index, space)
        if rows is not None:
            return taken(value, rows if piece is None else [rows[row] for row in piece])
        return value if piece is None else taken(value, piece)

    def _path(self, index: int, space: int) -> list[int] | None:
        """Rows of a value that the rows of a later space were made of; ``None`` where they are the same."""
        rows: list[int] | None = None
        own = self._graph.space(index)
        for step in self._graph.lineage(space):
            if step == own:
                break
            rows = self._source_rows[step] if rows is None else [self._source_rows[step][row] for row in rows]
        return rows


def in_driver(deployment: Deployment, sources: Iterable[Any]) -> Batch:
    """What a flow yields, brought here: for what is computed in the driver. Nothing else should take this way, which
    all payload goes along.

    Args:
        deployment: of the modules.
        sources: of an :class:`~chatlearn.data.stream.Experience`.
    """
    get = deployment.cluster.get

    def there(source: Any) -> Batch:
        if not is_sequence(source):
            return get(source) or {}
        pieces: list[Rows] = [Rows(tuple(map(there, piece.sources)), piece.rows) for piece in source]
        return gathered(pieces, deployment.padding)

    return merge_batches([there(source) for source in sources])


def check_steps(graph: Graph, allowed: Callable[[Node], str | None]) -> None:
    """Raises FlowError for the first node that does not belong into this kind of flow (``allowed`` says why)."""
    for node in graph:
        if reason := allowed(node):
            raise FlowError(f"{node.where}: {node.label} in {graph.name}: {reason}")


def _called(node: Node) -> set[str]:
    """The modules whose steps a node runs: its own, and those that it may ask."""
    return {node.module.name, *(client.name for client in node.clients)}


def _simplest(value: tuple[Rows, ...]) -> Any:
    """A value as a future, where it is one."""
    return value[0].sources[0] if len(value) == 1 and isinstance(value[0].rows, range) else value
