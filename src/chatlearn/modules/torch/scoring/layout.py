"""How the input tokens of a batch are laid out for a model: a line for each sequence, or lines that sequences share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from chatlearn.data.balance import longest_first
from chatlearn.modules.torch.scoring.window import Window

_LINE_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
"""Lengths of lines that are considered, as multiples of the longest piece."""


@dataclass(frozen=True)
class Piece:
    """Rows that begin alike: what they share stands once, then the rest of each.

    Attributes:
        rows: of the batch.
        shared: number of tokens that stand once.
        length: tokens in all.
    """

    rows: tuple[int, ...]
    shared: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Input tokens as a model takes them. What follows a token can't change its state, so padding stands at the end of
    the lines and needs no mask.

    Attributes:
        input_ids: ``[lines, length]`` int64.
        position_ids: ``[lines, length]`` int64, from 0 in each sequence; ``None`` where every line is one sequence.
        mask: ``[lines, 1, length, length]`` bool, which tokens (last dimension) each token sees; ``None`` where that
            follows from the position ids.
        sources: ``[M]`` int64: the place of the token before each response token, lines one after another.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    mask: Tensor | None
    sources: Tensor

    @classmethod
    def of(cls, window: Window, lines: Sequence[Sequence[Piece]]) -> Layout:
        """Lays out a window's inputs on lines of pieces; every row with inputs is in one piece."""
        length = max((sum(piece.length for piece in line) for line in lines), default=0) or 1
        lengths = window.row_lengths
        # the inputs of a row are two runs: those that its piece shares, and its own
        runs, starts, owners = [0] * (2 * len(lengths)), [0] * (2 * len(lengths)), [0] * (2 * len(lengths))
        pieces = [0] * (2 * len(lengths))
        for number, line in enumerate(lines):
            place = number * length
            for piece_number, piece in enumerate(line, 1):
                own = place + piece.shared
                for row in piece.rows:
                    runs[2 * row : 2 * row + 2] = piece.shared, lengths[row] - piece.shared
                    starts[2 * row : 2 * row + 2] = place, own
                    owners[2 * row + 1] = row + 1
                    pieces[2 * row : 2 * row + 2] = piece_number, piece_number
                    own += lengths[row] - piece.shared
                place += piece.length
        runs_, shape = torch.tensor(runs), (max(len(lines), 1), length)
        begins = torch.tensor(list(accumulate(runs, initial=0))[:-1])
        number = torch.arange(len(window.inputs))
        places = (torch.tensor(starts) - begins).repeat_interleave(runs_) + number

        def filled(values: Tensor, padding: int = 0) -> Tensor:
            grid = torch.full(shape, padding)
            grid.view(-1)[places] = values
            return grid

        # nothing sees padding, so any token will do but that of padding: a model may warn that it got no mask for it
        padding = int(window.inputs[0]) if len(window.inputs) else 0
        position_ids = mask = None
        if any(len(line) > 1 or len(piece.rows) > 1 for line in lines for piece in line):
            offsets = window.lengths.cumsum(0) - window.lengths
            position_ids = filled(number - offsets.repeat_interleave(window.lengths))
        if any(len(piece.rows) > 1 for line in lines for piece in line):
            mask = _sees(
                filled(torch.tensor(pieces).repeat_interleave(runs_)),
                filled(torch.tensor(owners).repeat_interleave(runs_)),
            )
        device = window.mask.device
        return cls(
            filled(window.inputs, padding).to(device),
            None if position_ids is None else position_ids.to(device),
            None if mask is None else mask.to(device),
            places[window.sources].to(device),
        )


def padded(window: Window) -> list[list[Piece]]:
    """A line for each row that has inputs."""
    return [[Piece((row,), length, length)] for row, length in enumerate(window.row_lengths) if length]


def single_line(window: Window) -> list[list[Piece]]:
    """All rows in one line."""
    return [[piece for line in padded(window) for piece in line]]


def packed(window: Window, hidden_size: int, *, sharing: bool) -> list[list[Piece]]:
    """Lines that rows share, chosen for the least work.

    Work is counted as tokens, padding included, times ``1 + length / (5 * hidden_size)``: attention to a whole line
    grows with its length, everything else does not (the 5 is measured, on a processor). So the wider the model, the
    longer the lines; where sequences are short and of about equal length, every row keeps a line of its own.

    Args:
        window: of a batch.
        hidden_size: of the model.
        sharing: rows with equal prompts may share these.
    """
    best, least = padded(window), _work(padded(window), hidden_size)
    for size in _sizes(window, sharing):
        pieces = _pieces(window, size)
        for lines in _candidates(pieces):
            work = _work(lines, hidden_size)
            if work < least:
                best, least = lines, work
    return best


def _sizes(window: Window, sharing: bool) -> Iterable[int]:
    """How many rows may share a prompt, at most."""
    largest = max((len(rows) for rows in _families(window)), default=1) if sharing else 1
    return sorted({*(size for size in (1, 2, 4, 8, 16, 32) if size < largest), largest})


def _candidates(pieces: Sequence[Piece]) -> Iterable[list[list[Piece]]]:
    lengths = [piece.length for piece in pieces]
    yield [[piece] for piece in pieces]
    for factor in _LINE_FACTORS:
        num_lines = math.ceil(sum(lengths) / (factor * max(lengths, default=1)))
        yield [[pieces[index] for index in line] for line in longest_first(lengths, num_lines or 1) if line]
        if num_lines <= 1:
            return


def _work(lines: Sequence[Sequence[Piece]], hidden_size: int) -> float:
    length = max((sum(piece.length for piece in line) for line in lines), default=0)
    return len(lines) * length * (1 + length / (5 * hidden_size))


def _pieces(window: Window, size: int) -> list[Piece]:
    lengths, prompts = window.row_lengths, window.row_prompts
    pieces: list[Piece] = []
    for rows in _families(window):
        count = -(-len(rows) // size)  # of about equal sizes
        bounds = [round(i * len(rows) / count) for i in range(count + 1)]
        for part in range(count):
            members = tuple(rows[bounds[part] : bounds[part + 1]])
            first = rows[bounds[part]]
            shared = prompts[first] if len(members) > 1 else lengths[first]
            pieces.append(Piece(members, shared, shared + sum(lengths[row] - shared for row in members)))
    return pieces


def _families(window: Window) -> list[list[int]]:
    """Rows with equal prompts, in order."""
    families: dict[bytes, list[int]] = {}
    start, inputs = 0, window.inputs.numpy()
    for row, (length, prompt) in enumerate(zip(window.row_lengths, window.row_prompts, strict=True)):
        if length:
            families.setdefault(inputs[start : start + prompt].tobytes(), []).append(row)
        start += length
    return list(families.values())


def _sees(pieces: Tensor, owners: Tensor) -> Tensor:
    """A token sees those before it in its piece that all of the piece share or that are its own row's."""
    same = (pieces.unsqueeze(2) == pieces.unsqueeze(1)).tril_()
    same &= (owners.unsqueeze(1) == 0) | (owners.unsqueeze(2) == owners.unsqueeze(1))
    return same.unsqueeze(1)
