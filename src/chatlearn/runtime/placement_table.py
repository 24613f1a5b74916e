"""A placement as a table of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatlearn.runtime.placement import Node, Seat

_HEAD = ("node", "GPUs", "share", "cores", "replicas")
_RIGHT = 3
"""Column of numbers."""


@dataclass
class _Row:
    """GPUs of one node with the same models on them, or what sits there without a GPU.

    Attributes:
        devices: numbers of the GPUs.
        sharing: replicas on each of them; 0 without a GPU.
        cores: of all replicas in the row.
        replicas: numbers of the replicas by model, and whether they have no GPU though others of the row have.
    """

    devices: list[int]
    sharing: int
    cores: float
    replicas: dict[tuple[str, bool], list[int]] = field(default_factory=dict[tuple[str, bool], list[int]])

    def alike(self, other: _Row) -> bool:
        """Whether the other is the same on further GPUs."""
        return self.sharing == other.sharing and self.replicas.keys() == other.replicas.keys()

    def add(self, other: _Row) -> None:
        self.devices += other.devices
        self.cores += other.cores
        for key, numbers in other.replicas.items():
            self.replicas[key] = list(dict.fromkeys([*self.replicas[key], *numbers]))

    def cells(self, node: str) -> tuple[str, ...]:
        names = [f"{name}[{_ranges(numbers)}]{' (no GPU)' * bare}" for (name, bare), numbers in self.replicas.items()]
        share = "-" if not self.sharing else "1" if self.sharing == 1 else f"1/{self.sharing}"
        return node, _ranges(self.devices) or "-", share, number(self.cores), ", ".join(names)


def render(nodes: Sequence[Node], seats: Sequence[Seat]) -> str:
    """One line about the whole, and rows for what sits on each node and what is free there."""
    of_nodes = [_rows_of([seat for seat in seats if seat.node == index]) for index in range(len(nodes))]
    lines: list[tuple[str, ...]] = [_HEAD]
    for _, group in groupby(enumerate(nodes), lambda each: _emptiness(each[1], each[0], of_nodes[each[0]])):
        members = [(node, of_nodes[index]) for index, node in group]
        node, rows = members[0]
        name = node.name if len(members) == 1 else f"{node.name} to {members[-1][0].name}"
        lines += [*(row.cells(name) for row in rows), *_free(name, node, rows, len(members) > 1)]
    return "\n".join([_summary(nodes, seats), "", *_aligned(lines)])


def _emptiness(node: Node, index: int, rows: Sequence[_Row]) -> object:
    """Equal for empty nodes of one size, which share a row."""
    return index if rows else (node.cpus, node.gpus)


def _rows_of(seats: Iterable[Seat]) -> list[_Row]:
    """The rows of a node: by GPU, then what has none."""
    seats = sorted(seats, key=lambda seat: (not seat.bundle.gpus, seat.first))
    rows: list[_Row] = []
    for new in (row for seat in seats for row in _of_seat(seat)):
        # GPUs in a row are neighbours; what has no GPU may stand anywhere.
        known = rows[-1:] if new.devices else [row for row in rows if not row.devices]
        same = next((row for row in known if row.alike(new)), None)
        if same is None:
            rows.append(new)
        else:
            same.add(new)
    return rows


def _of_seat(seat: Seat) -> Iterator[_Row]:
    """One row for each GPU, or one row without; the cores stand in the first."""
    bundle = seat.bundle
    for device in range(bundle.gpus) if bundle.gpus else [None]:
        inside = [tenant for tenant in bundle.tenants if not tenant.devices or device in tenant.devices]
        row = _Row([], 0, 0 if device else bundle.cpus)
        if device is not None:
            row.devices, row.sharing = [seat.first + device], bundle.num_sharing(device)
        for tenant in inside:
            row.replicas.setdefault((tenant.name, bool(bundle.gpus) and not tenant.devices), []).append(tenant.replica)
        yield row


def _free(name: str, node: Node, rows: Sequence[_Row], several: bool) -> list[tuple[str, ...]]:
    """The row of what is free on a node, if anything is."""
    used = {device for row in rows for device in row.devices}
    gpus = [device for device in range(node.gpus) if device not in used]
    cores = node.cpus - sum(row.cores for row in rows)
    if rows and not gpus and (not cores or cores == math.inf):
        return []
    shown = "-" if cores == math.inf else number(cores)
    return [(name, _ranges(gpus) or "-", "-", shown, "free on each" if several else "free")]


def _summary(nodes: Sequence[Node], seats: Sequence[Seat]) -> str:
    gpus, cores = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    taken_gpus, taken_cores = sum(seat.bundle.gpus for seat in seats), sum(seat.bundle.cpus for seat in seats)
    of_gpus = f"{taken_gpus} of {count(gpus, 'GPU')} and " if gpus else ""
    of_cores = count(taken_cores, "core") if cores == math.inf else f"{taken_cores} of {count(cores, 'core')}"
    return f"{count(len(nodes), 'node')}: {of_gpus}{of_cores} taken"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return [
        "  ".join(
            f"{cell:>{width}}" if column == _RIGHT else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _ranges(numbers: Iterable[int]) -> str:
    """``0-2,5`` for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def count(amount: float, what: str) -> str:
    """``2 GPUs``, ``1 GPU``."""
    return f"{number(amount)} {what}{'' if amount == 1 else 's'}"


def number(amount: float) -> str:
    """Without ``.0``, and with four decimals at most."""
    return f"{amount:.4f}".rstrip("0").rstrip(".")
