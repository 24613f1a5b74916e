"""What runs beside a module's replica, the same on every cluster.

A worker constructs the instance, seeds the generators before every user function, gathers a call's rows, runs the step,
and checks and normalises what it returns. Anything else that layers above want done where the module lives goes through
:meth:`Worker.apply`.
"""

from __future__ import annotations

import bdb
import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chatlearn.data.collate import split
from chatlearn.data.padding import Padding
from chatlearn.data.prompts import fetch_from, lengths_of, open_dataset
from chatlearn.errors import ChatLearnError, DataError, ModuleError, StepError, WorkerError
from chatlearn.flow.contracts import reads_of
from chatlearn.flow.signature import step_signature
from chatlearn.guards import is_instance, is_list, kind_of
from chatlearn.modules.base import BaseModule, Description, ModuleContext, merge_batches, step_functions
from chatlearn.modules.settings import Settings
from chatlearn.observe.samples import sample_lines
from chatlearn.runtime.arguments import copied_arguments
from chatlearn.runtime.batches import Returned, ReturnedTensors, normalise, own, taken_source_rows, tensors_of
from chatlearn.runtime.calls import STEP_PHASES, Metrics, ReplicaSettings, Report, Rows, StepCall, StepData, Value
from chatlearn.runtime.clients import Ask, Client, ClientRef, with_clients
from chatlearn.runtime.rows import gathered, selected
from chatlearn.runtime.seeding import derive_seed, seed_everything
from chatlearn.types import Batch, SampleIds


class Worker:
    """One rank of a replica. Constructor arguments and sections of the configuration are copied, so that what a module
    does to its own reaches nobody else.
    """

    def __init__(self, description: Description, replica: int, settings: ReplicaSettings) -> None:
        self.name = description.name
        self.replica = replica
        self.settings = settings
        args, kwargs = copied_arguments(description)
        seed_everything(derive_seed(settings.seed, self.name, "construct"))
        self.module = description.module_class(*args, **kwargs)
        self._steps = step_functions(self.module)
        model_args = copy.deepcopy(settings.model_args)
        self._context = ModuleContext(
            model_args=Settings(model_args) if kind_of(model_args) is dict else model_args,
            module_args=copy.deepcopy(settings.module_args),
            runtime_args=copy.deepcopy(settings.runtime_args),
            replica_id=replica,
        )
        self.module.__dict__["_context"] = self._context
        self._datasets: dict[str, Any] = {}
        self._padding: Mapping[str, Padding] = {}
        self.turn: AbstractContextManager[Any] = threading.RLock()
        self._client_reports: list[list[Report]] = []
        self._returned = ReturnedTensors()
        self.ask: Ask = _nobody

    def __str__(self) -> str:
        return f"{self.name}[{self.replica}]"

    def ping(self) -> str:
        """Control call: answers with the worker's name."""
        return str(self)

    def setup(self) -> None:
        """Runs the module's ``setup``; every replica gets the same seed."""
        self._enter("setup")
        if hasattr(self.module, "setup"):
            self._run("setup", "", self.module.setup)

    def hook(self, name: str, *place: Any) -> Any:
        """Runs a method of the module's life cycle, such as ``before_episode``, if the class has it."""
        function = getattr(self.module, name, None)
        if function is None:
            return None
        self._enter(name, *place)
        return self._run(name, " ".join(map(str, place)), function)

    def move(self, hook: str, tags: tuple[str, ...]) -> None:
        """Runs the module's ``onload(tags)`` or ``offload(tags)``."""
        self._enter(hook)
        self._run(hook, "", lambda: getattr(self.module, hook)(tags))

    def take_report(self) -> Report:
        """What hooks have logged and put since the last call."""
        return self._report(self._take_metrics(1), 0.0)

    def padding(self) -> dict[str, Padding]:
        """The module's own padding rules, as of now."""
        return {**self.module.padding, **self._context.padding}

    def use_padding(self, rules: Mapping[str, Padding]) -> None:
        """Takes the rules of all modules of the run."""
        self._padding = rules

    def share(self, values: Mapping[str, Any]) -> None:
        """Makes values that modules have put available to ``get``."""
        self._context.shared.update(values)

    def apply(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls ``function(module, *args)`` here."""
        return function(self.module, *args)

    def build_dataset(self, key: str, prompts: Any, is_eval: bool) -> int:
        """Builds a data set from prompts (``key`` names it for :meth:`fetch`) and returns its length."""
        self._enter("build_dataset", is_eval)
        self._datasets[key] = self._run("build_dataset", "", lambda: open_dataset(self.module, prompts, is_eval))
        return len(self._datasets[key])

    def fetch(self, picks: Sequence[tuple[str, int]], position: int) -> Batch:
        """Fetches and collates samples.

        Args:
            picks: key of the data set and index in it of each sample.
            position: the sampler's; it and the data set's purpose key the seed.
        """
        self._enter("fetch", picks[0][0].split("-")[0], position)
        try:
            return normalise(fetch_from(*self._numbered(picks)), len(picks))
        except DataError as error:
            text = f"{self}: samples {[index for _, index in picks[:4]]}…: {error}"
            raise DataError(text).with_traceback(error.__traceback__) from error.__cause__

    def lengths(self, picks: Sequence[tuple[str, int]], position: int) -> list[int]:
        """Length of each sample; arguments as for :meth:`fetch`."""
        self._enter("lengths", picks[0][0].split("-")[0], position)
        try:
            return lengths_of(*self._numbered(picks))
        except DataError as error:
            text = f"{self}: the samples of an episode can't be sorted: {error}"
            raise DataError(text).with_traceback(error.__traceback__) from error.__cause__

    def _numbered(self, picks: Sequence[tuple[str, int]]) -> tuple[list[Any], list[tuple[int, int]]]:
        """The data sets of one purpose, and the picks with numbers for their keys."""
        purpose = picks[0][0].split("-")[0]
        numbers = {key: n for n, key in enumerate(key for key in self._datasets if key.split("-")[0] == purpose)}
        return [self._datasets[key] for key in numbers], [(numbers[key], index) for key, index in picks]

    def run(
        self, call: StepCall, inputs: Mapping[str, Sequence[Value]], after: tuple[Any, ...] = ()
    ) -> tuple[Any, Report]:
        """Runs a step; the values of each data parameter are merged into one dict (later ones win). ``after`` holds
        outputs that only have to be there.

        Returns:
            The output (``None``, a batch, or a list of micro-batches) and what else the call leaves behind.

        Raises:
            StepError: the step raised (its exception is the cause), returned something that is no batch, or returned
                another number of rows.
            DataError: the inputs can't be gathered.
        """
        with self.turn:
            return self._run_step(call, inputs)

    def answer(self, call: StepCall, data: tuple[Batch, ...]) -> tuple[Any, Report]:
        """Runs a step for a step of another module; batches for its data parameters in their order, or merged into one
        dict where there is one parameter. Returns and raises what :meth:`run` does, and a StepError for another number
        of batches than it takes.
        """
        signature = step_signature(self._steps[call.step])
        if signature.merges:
            return self.run(call, {signature.data[0]: ((Rows(data),),)})
        extra = len(data) - len(signature.data)
        if extra < 0 or (extra > 0 and not signature.variadic):
            takes = ", ".join([*signature.data, *(["further ones"] if signature.variadic else [])]) or "no data"
            raise StepError(f"{self.name}.{call.step} takes {takes}, got {len(data)} batches ({call.place}).")
        names = [*signature.data, *(f"*{i}" for i in range(extra))]
        return self.run(call, {name: ((Rows((batch,)),),) for name, batch in zip(names, data, strict=True)})

    def _run_step(self, call: StepCall, inputs: Mapping[str, Sequence[Value]]) -> tuple[Any, Report]:
        start = time.perf_counter()
        self._client_reports = []
        function = self._steps[call.step]
        signature = step_signature(function)
        key = (call.step, call.occurrence, call.origin) if call.origin else (call.step, call.occurrence)
        seed = derive_seed(self.settings.seed, call.phase, self.name, *key)
        self._enter(call.phase, *key, call.index, *([call.piece] if call.piece else []), noise_seed=seed)
        context = self._context
        context.ids, context.metrics = call.ids, []
        try:
            data = {name: _gather(values, call.micro_batch_size, self._padding) for name, values in inputs.items()}
        except DataError as error:
            raise DataError(f"the input of {self}.{call.step} ({call.place}) can't be put together: {error}") from None
        if call.micro_batch_size is not None and call.step != "train_step":
            outputs, metrics = self._per_micro_batch(call, function, data)
            return outputs, self._report(metrics, start)
        parameters = signature.run_parameters(self._run_parameters(call))
        output = self._step(call, function, {**data, **self._constants(call), **parameters}, data)
        if call.step == "train_step":
            return None, self._report(self._take_metrics(len(call.ids), call.micro_batch_size), start)
        output, rows = taken_source_rows(output, function, len(call.ids), f"{self}.{call.step} ({call.place})")
        output = self._checked(call, output, len(call.ids if rows is None else rows))
        return output, self._report(self._take_metrics(len(call.ids)), start, rows)

    def _constants(self, call: StepCall) -> Mapping[str, Any]:
        """The constants of a call, with modules among them as clients."""
        reports: list[Report] = []  # their number is that of the next question
        self._client_reports.append(reports)

        def client(ref: ClientRef) -> Client:
            return Client(ref, self.ask, call, self.name, self.replica, reports)

        constants = with_clients(call.constants, client, ClientRef)
        return with_clients(constants, _copied, (torch.Tensor, np.ndarray)) if constants else constants

    def lines(self, rows: Rows, ids: SampleIds, episode: int) -> list[str]:
        """Rows as lines of text, made here so that only text has to travel; see
        :func:`chatlearn.observe.samples.sample_lines`.
        """
        return sample_lines(selected(rows, self._padding), ids, episode)

    def _per_micro_batch(
        self, call: StepCall, function: Callable[..., Any], data: dict[str, list[Batch]]
    ) -> tuple[list[Batch] | None, Metrics]:
        """In a training flow steps other than ``train_step`` see one micro-batch at a time."""
        assert call.micro_batch_size is not None
        values = {"iteration": call.run_parameters.get("iteration"), "is_eval": False}
        parameters = step_signature(function).run_parameters(values)
        outputs: list[Any] = []
        metrics: Metrics = []
        for number, ids in enumerate(_split_ids(call.ids, call.micro_batch_size)):
            self._context.ids = ids
            piece = {name: micro_batches[number] for name, micro_batches in data.items()}
            constants = self._constants(replace(call, ids=ids, piece=number))
            output = self._step(call, function, {**piece, **constants, **parameters}, piece)
            outputs.append(self._checked(call, output, len(ids)))
            metrics += self._take_metrics(len(ids))
        return None if outputs and outputs[0] is None else outputs, metrics

    def _step(self, call: StepCall, function: Callable[..., Any], arguments: dict[str, Any], data: StepData) -> Any:
        self._check_reads(call, reads_of(self.module, function), data)
        mutates = self.module.mutates_inputs
        borrows = getattr(function, "_chatlearn_borrows", False)
        given = {name: own(value, mutates, borrows) for name, value in data.items()}
        tensors = [] if mutates else [pair for value in given.values() for pair in tensors_of(value)]
        watched = [(key, tensor, tensor._version) for key, tensor in tensors if not tensor.is_inference()]
        result = self._run(
            call.step,
            call.place,
            lambda: step_signature(function).call(function, self.module, {**arguments, **given}),
            ids=self._context.ids,
        )
        if changed := [key for key, tensor, version in watched if tensor._version != version]:
            raise StepError(
                f"{self}.{call.step} changes its input {', '.join(map(repr, dict.fromkeys(changed)))} in place "
                f"({call.place}). Other steps read the same tensor: work on a copy (`x = x.clone()`), or set "
                f"`mutates_inputs = True` on the class to get copies."
            )
        return result

    def _check_reads(self, call: StepCall, reads: frozenset[str], data: StepData) -> None:
        if not reads:
            return
        first = [value[:1] if isinstance(value, list) else [value] for value in data.values()]
        keys = dict.fromkeys(key for batches in first for batch in batches for key in batch)
        if missing := sorted(reads - keys.keys()):
            raise StepError(
                f"{self}.{call.step} ({call.place}) needs {', '.join(map(repr, missing))}, but its input has "
                f"{', '.join(map(repr, keys))}. Call the "
                f"step that makes it earlier in the flow, and pass or return its output."
            )

    def _run(self, step: str, place: str, function: Callable[[], Any], ids: SampleIds | None = None) -> Any:
        """Calls a user's function; its exception comes out as a StepError with the user's traceback first.

        Outside of steps (those have ``ids``) an error of ours says all there is to say and passes unchanged.
        """
        if torch.get_num_threads() != self.settings.num_threads:
            torch.set_num_threads(self.settings.num_threads)
        try:
            return function()
        except bdb.BdbQuit:
            raise
        except Exception as error:
            if ids is None and isinstance(error, ChatLearnError):
                raise
            where = ", ".join(filter(None, [place, _sample_words(ids)]))
            raise StepError(
                f"{type(error).__name__}: {error}\n  raised in {self}.{step}, rank 0{', ' + where if where else ''}. "
                f"The traceback of the module's own code stands above."
            ).with_traceback(error.__traceback__) from error

    def _run_parameters(self, call: StepCall) -> dict[str, Any]:
        parameters = dict(call.run_parameters)
        if call.step == "train_step":
            assert call.micro_batch_size is not None
            pieces = _split_ids(call.ids, call.micro_batch_size)
            parameters["train_info"] = {
                **parameters.get("train_info", {}),
                "sample_ids": [list(ids.sample_ids) for ids in pieces],
                "group_ids": [list(ids.group_ids) for ids in pieces],
            }
        return parameters

    def _checked(self, call: StepCall, output: Returned, rows: int) -> Batch | None:
        place = f"{self}.{call.step} ({call.place})"
        if output is None:
            if call.used:
                raise StepError(
                    f"{place} returns nothing, but the flow uses its output. Return a dict with the keys that it adds."
                )
            return None
        if not isinstance(output, dict):
            raise StepError(
                f"{place} returns {type(output).__name__}, but a step returns a dict from names to batch-first "
                f"tensors, arrays or lists (or nothing)."
            )
        try:
            batch = normalise(output, rows)
        except DataError as error:
            raise StepError(f"{place} returns a malformed batch: {error}") from None
        if (key := self._returned.overwritten(batch)) is not None:
            raise StepError(
                f"{place} returns {key!r} in memory that an earlier call returned and that was written to since then, "
                f"so the earlier batch, which is still to be read, has changed too. Return a tensor of its own: "
                f"{key}.clone()."
            )
        return batch

    def _take_metrics(self, rows: int, micro_batch_size: int | None = None) -> Metrics:
        """What was logged since the last time, each value with the samples that it stands for. Several values of one
        name share the rows of their call: one for each micro-batch of a ``train_step`` stands for that micro-batch,
        else each stands for an equal part.
        """
        logged, self._context.metrics = self._context.metrics, []
        metrics = [(f"{self.name}/{name}", _number(self.name, name, value), kind) for name, value, kind in logged]
        counts = Counter(name for name, _, _ in metrics)
        if len(counts) == len(metrics):
            return [(*metric, rows) for metric in metrics]
        sizes = [len(ids) for ids in _split_ids(self._context.ids, micro_batch_size)] if micro_batch_size else []
        shares = {
            name: iter(sizes if count == len(sizes) else [rows / count] * count) for name, count in counts.items()
        }
        return [(name, value, reduction, next(shares[name])) for name, value, reduction in metrics]

    def _report(self, metrics: Metrics, start: float, rows: tuple[int, ...] | None = None) -> Report:
        puts, self._context.puts = tuple(self._context.puts), []
        reports = [report for reports in self._client_reports for report in reports]
        self._client_reports = []
        for report in reports:
            metrics, puts = [*metrics, *report.metrics], (*puts, *report.puts)
        spans = tuple(span for report in reports for span in report.spans)
        return Report(metrics, puts, rows, start, time.perf_counter(), spans)

    def _enter(self, *place: Any, noise_seed: int | None = None) -> None:
        seed = derive_seed(self.settings.seed, self.name, *place)
        if place[0] not in STEP_PHASES or self.settings.seeds_globals:
            seed_everything(seed)
        self._context.enter(seed, noise_seed)


def _copied(value: Any) -> Any:
    return value.detach().clone() if is_instance(value, torch.Tensor) else value.copy()


def _nobody(module: str, replica: int, call: StepCall, data: tuple[Batch, ...]) -> tuple[Any, Report]:
    raise WorkerError(f"{module} can't be reached from here.")


def _number(module: str, name: str, value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModuleError(f"{module}.log({name!r}): {type(value).__name__} is no real number: {error}.") from None


def _gather(values: Sequence[Value], micro_batch_size: int | None, padding: Mapping[str, Padding]) -> Any:
    """One parameter's data: a batch, or in a training flow a list of micro-batches."""
    if micro_batch_size is None:
        return merge_batches([gathered(value, padding) for value in values])
    parts: list[list[Batch]] = [
        value if is_list(value) else split(gathered(value, padding), micro_batch_size) for value in values
    ]
    return parts[0] if len(parts) == 1 else [merge_batches(part) for part in zip(*parts, strict=True)]


def _split_ids(ids: SampleIds, size: int) -> list[SampleIds]:
    return [ids.slice(start, min(start + size, len(ids))) for start in range(0, len(ids), size)]


def _sample_words(ids: SampleIds | None) -> str:
    if not ids:
        return ""
    shown = ", ".join(map(str, ids.sample_ids[:8]))
    return f"sample ids [{shown}{', …' if len(ids) > 8 else ''}]"


def check_replicable(module: BaseModule, num_replica: int) -> None:
    """Raises ModuleError where a stateful module is given several replicas."""
    if module.stateful and num_replica > 1:
        raise ModuleError(
            f"{module.name}: {type(module).__name__} is stateful (it keeps state between calls), so it has one "
            f"replica, but `models.{module.name}.num_replica` is {num_replica}. Set it to 1."
        )
