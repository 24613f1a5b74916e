"""Which node each bundle of GPUs and cores goes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_STEPS = 20_000
"""The search for a packing ends after so many attempts to put a bundle on a node: a fraction of a second."""


@dataclass(frozen=True)
class Size:
    """Of a bundle, or of what a node has."""

    gpus: int
    cpus: float

    def fits(self, room: Size) -> bool:
        """Whether there is room for it."""
        return self.gpus <= room.gpus and self.cpus <= room.cpus


def packing_order(bundles: Sequence[Size]) -> list[int]:
    """Indices of bundles in the order in which they get their nodes: more GPUs first, then more cores."""
    return sorted(range(len(bundles)), key=lambda index: (-bundles[index].gpus, -bundles[index].cpus))


def pack(bundles: Sequence[Size], nodes: Sequence[Size], spread: bool) -> list[int | None]:
    """The node of each bundle, or None for one without a place.

    Bundles get nodes one after the other, see :func:`packing_order`: the first node with room, but bundles without
    GPUs go round the nodes if ``spread``, to those with more free cores first. Where that leaves a bundle without a
    place although the nodes have enough in all, other ways are tried: all of them if they are few.

    Args:
        bundles: what is to be placed.
        nodes: what each node has.
        spread: bundles without GPUs are spread over the nodes instead of packed.
    """
    order = packing_order(bundles)
    room = _Room(nodes, spread)
    found: dict[int, int | None] = {}
    for index in order:
        found[index] = node = next(room.candidates(bundles[index]), None)
        if node is not None:
            room.take(node, bundles[index])
    enough = total(bundles).fits(total(nodes))
    if None in found.values() and enough and (nodes_in_order := _search([bundles[i] for i in order], nodes, spread)):
        found = dict(zip(order, nodes_in_order, strict=True))
    return [found[index] for index in range(len(bundles))]


def _search(bundles: Sequence[Size], nodes: Sequence[Size], spread: bool) -> list[int] | None:
    """Nodes with room for all bundles, found by going back where a bundle has no place; None if there are none, or
    none after MAX_STEPS.
    """
    room, chosen = _Room(nodes, spread), list[int]()
    choices = [room.candidates(bundles[0])]
    for _ in range(MAX_STEPS):
        node = next(choices[-1], None)
        if node is not None:
            room.take(node, bundles[len(chosen)])
            chosen.append(node)
            if len(chosen) == len(bundles):
                return chosen
            choices.append(room.candidates(bundles[len(chosen)]))
        elif not chosen:
            return None
        else:
            choices.pop()
            node = chosen.pop()
            room.give_back(node, bundles[len(chosen)])
    return None


class _Room:
    """What is free on each node."""

    def __init__(self, nodes: Sequence[Size], spread: bool) -> None:
        self._free = list(nodes)
        self._taken = [0.0 for _ in nodes]  # cores: they tell nodes apart that have any number
        self._without_gpus = [0 for _ in nodes]
        self._spread = spread

    def candidates(self, bundle: Size) -> Iterator[int]:
        """Nodes with room, the best first; of nodes with equal room only the best."""
        fitting = [node for node, free in enumerate(self._free) if bundle.fits(free)]
        if self._spread and not bundle.gpus:
            fitting.sort(key=lambda node: (self._without_gpus[node], -self._free[node].cpus, self._taken[node]))
        best: dict[Size, int] = {}
        for node in fitting:
            best.setdefault(self._free[node], node)
        return iter(best.values())

    def take(self, node: int, bundle: Size) -> None:
        """Puts a bundle on a node."""
        self._change(node, bundle, 1)

    def give_back(self, node: int, bundle: Size) -> None:
        """Takes a bundle off its node."""
        self._change(node, bundle, -1)

    def _change(self, node: int, bundle: Size, sign: int) -> None:
        free = self._free[node]
        self._free[node] = Size(free.gpus - sign * bundle.gpus, free.cpus - sign * bundle.cpus)
        self._taken[node] += sign * bundle.cpus
        self._without_gpus[node] += 0 if bundle.gpus else sign


class _HasSize(Protocol):
    @property
    def gpus(self) -> int: ...

    @property
    def cpus(self) -> float: ...


def total(sizes: Iterable[_HasSize]) -> Size:
    """The sum of sizes, or of bundles."""
    sizes = list(sizes)
    return Size(sum(size.gpus for size in sizes), sum(size.cpus for size in sizes))
