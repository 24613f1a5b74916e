"""What a cluster tells a worker, and what it hears back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatlearn.types import Batch, SampleIds


@dataclass(frozen=True)
class ReplicaSettings:
    """What a replica is told about its run.

    Attributes:
        seed: the run's seed.
        model_args: ``models.<name>.args``, checked by the class's ``Args`` if it has one.
        module_args: the section ``models.<name>``.
        runtime_args: the section ``runtime``.
        num_threads: torch threads while the module's functions run (sums differ between thread counts).
        seeds_globals: the global generators are seeded before each step too; not where steps run beside others.
        replaceable: the replica keeps nothing between calls that ``setup`` and a sync do not give it, so that another
            can take its place.
    """

    seed: int
    model_args: Any
    module_args: Any
    runtime_args: Any
    num_threads: int = 1
    seeds_globals: bool = True
    replaceable: bool = False


@dataclass(frozen=True)
class Rows:
    """Some rows of batches that live somewhere on the cluster.

    Attributes:
        sources: futures of batches with the same rows (or the batches themselves), merged into one dict where
            later ones win. A tuple of Rows among them is a batch in several pieces that name their rows.
        rows: which rows, in order; ``None`` means all of them.
    """

    sources: tuple[Any, ...]
    rows: Sequence[int] | None = None


Value = tuple[Rows, ...] | Any
"""What one reference of a flow stands for: :class:`Rows` to concatenate, or the future of a list of micro-batches."""

StepData = Mapping[str, Batch | list[Batch]]
"""What the data parameters of a step get: a batch, or in a training flow a list of micro-batches."""

STEP_PHASES = frozenset({"experience", "train", "eval", "call"})


@dataclass(frozen=True)
class StepCall:
    """One call of one step.

    Attributes:
        step: the method.
        phase: one of :data:`STEP_PHASES`; part of the seed's key.
        occurrence: of the step in its flow; part of the seed's key.
        index: batch index; part of the seed's key.
        constants: arguments that were plain values in the flow.
        run_parameters: ``iteration``, ``is_eval`` and what ``train_info`` needs.
        ids: of all rows of the call.
        used: something reads the output, so there must be one.
        micro_batch_size: set in a training flow: the step works on a list of micro-batches.
        place: words for errors, such as ``episode 3, batch 17``.
        origin: of a call from inside another step: which one, and its number there; part of the seed's key.
        piece: number of the micro-batch that a step gets alone; part of the seed's key of the calls that it makes.
    """

    step: str
    phase: str
    occurrence: int
    index: int
    constants: Mapping[str, Any]
    run_parameters: Mapping[str, Any]
    ids: SampleIds
    used: bool = True
    micro_batch_size: int | None = None
    place: str = ""
    origin: str = ""
    piece: int = 0


Metrics = list[tuple[str, float, str, float]]
"""What a call logged: (name, value, reduction, number of samples that the value stands for)."""

Span = tuple[str, str, float, float, float, int, str]
"""A call from inside another step: (replica, step, asked, start, end, number of rows, caller); times are seconds of
``time.perf_counter()``."""


@dataclass(frozen=True)
class Report:
    """What a call leaves behind beside its output.

    Attributes:
        metrics: what it logged.
        puts: what it put into the store that modules share, in order.
        source_rows: of a step that expands or filters: the input row that each row of the output comes from.
        start: ``time.perf_counter()`` when it began, in seconds.
        end: when it ended.
        spans: of the calls that it made to modules that it was given, and of theirs.
    """

    metrics: Metrics
    puts: tuple[tuple[str, Any], ...] = ()
    source_rows: tuple[int, ...] | None = None
    start: float = field(default=0.0, compare=False)
    end: float = field(default=0.0, compare=False)
    spans: tuple[Span, ...] = field(default=(), compare=False)
