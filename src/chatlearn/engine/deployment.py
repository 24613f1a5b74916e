"""The modules of an engine, on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from chatlearn.checkpoint.store import RunState
from chatlearn.config.schema import Config, ModelConfig
from chatlearn.data.padding import Padding, padding_rules
from chatlearn.engine.replacements import Replacements
from chatlearn.engine.residency import Residency
from chatlearn.engine.startup import Startup
from chatlearn.errors import EngineError
from chatlearn.flow.graph import Node
from chatlearn.flow.signature import step_signature
from chatlearn.modules.base import BaseModule, describe, step_functions
from chatlearn.observe.metrics import MetricBuffer
from chatlearn.runtime.base import Cluster, Future, Handle, create_cluster
from chatlearn.runtime.calls import ReplicaSettings, Report, Rows, StepCall, Value
from chatlearn.runtime.clients import ClientRef, with_clients
from chatlearn.runtime.placement import NOTHING, needed, place
from chatlearn.types import Batch, SampleIds, num_rows

_TURNS = {"hook": 0, "experience": 1, "train": 2}
"""Phase -> when its reports are taken."""


class Deployment:
    """Replicas of modules, and calls to them.

    Args:
        config: the run's.
        modules: by name.
        trained: names of those that the trainer's flow trains.
    """

    def __init__(self, config: Config, modules: Mapping[str, BaseModule], trained: Collection[str] = ()) -> None:
        self.config = config
        self._trained = frozenset(trained)
        self.metrics = MetricBuffer()
        self.shared: dict[str, Any] = {}
        self.trace: Trace | None = None
        self.state = RunState()
        self.padding: Mapping[str, Padding] = {}
        self.cluster: Cluster = create_cluster(config)
        self._modules = modules
        self._replicas: dict[str, list[Handle]] = {}
        self._datasets: dict[tuple[str, str, int], tuple[str, int, Any]] = {}
        self.lasting: dict[str, list[Lasting]] = {}
        self.restorers: list[tuple[str, Callable[[Handle], None]]] = []
        self.turns = count(1)
        self._pending: list[Call] = []
        self._batch_sizes: dict[str, int] = {}
        self.puts: dict[str, Any] = {}
        self._residency = Residency(config, modules, self._move)

    def start(self, note: Callable[[str], None] = print) -> None:
        """Starts the cluster, places and spawns all replicas, and runs their ``setup``.

        Args:
            note: is told of each step, where there is more to it than making objects, and of replicas that are
                replaced later.

        Raises:
            ConfigError: the cluster has no room for the modules.
            WorkerError: the cluster can't be reached, or a replica can't be started.
        """
        self.cluster.on_loss = Replacements(self, note).replace
        startup = Startup(note)
        self.cluster.start(needed(self.config, self._modules) if self._is_placed else NOTHING)
        if nodes := self.cluster.nodes():
            startup.reached(f"nodes: {len(nodes)}")
            self.cluster.reserve(place(self.config, self._modules, nodes))
        for name in self._modules:
            num_replica = self.config.model(name).num_replica
            self._replicas[name] = [self.spawn(name, replica) for replica in range(num_replica)]
        for handle in self.handles():
            self.cluster.location(handle)  # what fails in a constructor comes out before any setup
        if nodes:
            startup.reached(f"workers: {len(self.handles())}")
        self._hook("setup", self.handles())
        if nodes:
            startup.reached("setup of all")
        self.settle()
        self.publish()
        self._use_padding()

    @property
    def _is_placed(self) -> bool:
        """Modules sit on cores and devices of machines."""
        return self.config.runtime_env.backend != "local"

    def spawn(self, name: str, replica: int) -> Handle:
        """Begins to construct a replica."""
        module, model = self._modules[name], self.config.model(name)
        settings = ReplicaSettings(
            seed=self.config.runtime.seed,
            model_args=_model_args(module, model),
            module_args=model,
            runtime_args=self.config.runtime,
            num_threads=model.cpu_per_process,
            replaceable=self.is_replaceable(name),
        )
        return self.cluster.spawn(describe(module), replica, settings)

    def trains(self, name: str) -> bool:
        """Whether the trainer's flow trains this module."""
        return name in self._trained

    def is_replaceable(self, name: str) -> bool:
        """Whether what a replica of this module holds can be made anew."""
        return not self._modules[name].stateful and name not in self._trained

    def stop(self) -> None:
        """Ends all replicas."""
        self.cluster.shutdown()

    @property
    def names(self) -> list[str]:
        """Names of all modules."""
        return list(self._replicas)

    def holds(self, modules: Mapping[str, BaseModule]) -> bool:
        """Whether these modules are here."""
        return all(self._modules.get(name) is module for name, module in modules.items())

    def handles(self, name: str | None = None) -> list[Handle]:
        """The replicas of one module, or of all."""
        return [h for n, handles in self._replicas.items() if name in (None, n) for h in handles]

    def batch_size(self, name: str) -> int:
        """Generation batch size of a module."""
        if name not in self._batch_sizes:  # asked for before every call
            own = self.config.model(name).generation_batch_size
            self._batch_sizes[name] = own or self.config.runtime.generation_batch_size
        return self._batch_sizes[name]

    def hook(self, method: str, *place: Any) -> None:
        """Runs a method of the life cycle on every replica whose class has it; what they log counts like a step's."""
        having = [name for name, module in self._modules.items() if callable(getattr(type(module), method, None))]
        self._hook("hook", [handle for name in having for handle in self._replicas[name]], method, *place)

    def occupy(self, modules: Collection[str]) -> None:
        """Has these modules in their memory for what comes next; others give up what their sections say."""
        self._residency.occupy(modules)

    def ensure(self, modules: Collection[str]) -> None:
        """Has these modules in their memory; where they are, nothing moves."""
        self._residency.ensure(modules)

    def publish(self) -> None:
        """What modules have put since the last time is there for all to get."""
        if self.puts:
            self._share(self.puts)
            self.puts = {}

    def restore_shared(self, values: Mapping[str, Any]) -> None:
        """Replaces what modules share by what a checkpoint holds."""
        self.puts = {}
        self._share(values)

    def apply(self, name: str, function: Callable[..., Any], *args: Any, lasts: bool = False) -> list[Any]:
        """``function(module, *args)`` beside each replica of a module; all results. What it does to the module
        ``lasts`` if a replica that takes another's place needs it too.
        """
        futures = [self.cluster.call(handle, "apply", function, *args) for handle in self._replicas[name]]
        results = [self.cluster.get(future) for future in futures]
        if lasts:
            self._remember(name, "apply", function, *args)
        return results

    def apply_first(self, name: str, function: Callable[..., Any], *args: Any, lasts: bool = False) -> Any:
        """``function(module, *args)`` beside replica 0 of a module; ``lasts`` as for :meth:`apply`."""
        result = self.cluster.get(self.cluster.call(self._replicas[name][0], "apply", function, *args))
        if lasts:
            self._remember(name, "apply", function, *args)
        return result

    def control_first(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """``function(module, *args)`` beside replica 0 of a module, past what it is doing."""
        return self.cluster.control(self._replicas[name][0], "apply", function, *args)

    def _remember(self, name: str, method: str, *args: Any) -> None:
        self.lasting.setdefault(name, []).append((method, args))

    def open_dataset(self, name: str, prompts: Any, is_eval: bool) -> tuple[str, int]:
        """Builds the data set of these prompts on replica 0 of a module, once; returns its key for :meth:`fetch` and
        its length.
        """
        purpose = "eval" if is_eval else "train"
        known = (name, purpose, id(prompts))
        if known not in self._datasets:
            key = f"{purpose}-{len(self._datasets)}"
            length = self.cluster.get(
                self.cluster.call(self._replicas[name][0], "build_dataset", key, prompts, is_eval)
            )
            self._datasets[known] = key, length, prompts  # holding on to the prompts keeps their id taken
            self._remember(name, "build_dataset", key, prompts, is_eval)
        return self._datasets[known][:2]

    def fetch(self, name: str, picks: Sequence[tuple[str, int]], position: int) -> Future:
        """Samples (key of the data set, index) as one batch; ``position`` is the sampler's."""
        return self.cluster.call(self._replicas[name][0], "fetch", picks, position)

    def lengths(self, name: str, picks: Sequence[tuple[str, int]], position: int) -> list[int]:
        """Lengths of samples, as :func:`chatlearn.data.lengths.length_of` counts them; arguments as for
        :meth:`fetch`.
        """
        return self.cluster.get(self.cluster.call(self._replicas[name][0], "lengths", picks, position))

    def run(
        self,
        node: Node,
        values: Mapping[int, Value],
        ids: SampleIds,
        *,
        phase: str,
        index: int,
        place: str,
        run_parameters: Mapping[str, Any],
        used: bool,
        micro_batch_size: int | None = None,
        after: tuple[Future, ...] = (),
        turn: int = 0,
    ) -> Call:
        """Runs a node on the replica whose turn it is.

        Args:
            node: of a flow.
            values: what the indices in ``node.inputs`` stand for.
            ids: of the rows.
            phase: ``experience``, ``train`` or ``eval``.
            index: number of the batch.
            place: words for errors.
            run_parameters: see :class:`~chatlearn.runtime.calls.StepCall`.
            used: something reads the output, so there must be one.
            micro_batch_size: in a training flow.
            after: outputs that have to be there first.
            turn: its report is taken after those of lower turns, whatever the timing.
        """
        replicas = self._replicas[node.module.name]
        call = StepCall(
            step=node.step,
            phase=phase,
            occurrence=node.occurrence,
            index=index,
            constants=with_clients(dict(node.constants), self._ref, BaseModule),
            run_parameters=run_parameters,
            ids=ids,
            used=used,
            micro_batch_size=micro_batch_size,
            place=place,
        )
        inputs = {name: tuple(values[i] for i in indices) for name, indices in node.inputs.items()}
        handle, submitted = replicas[index % len(replicas)], time.perf_counter()
        output, report = self.cluster.call_pair(handle, "run", call, inputs, after)
        episode = self.state.episode + (phase != "eval")
        made = Call(output, report, phase, handle, node.label, index, len(ids), submitted, episode, turn)
        self._pending.append(replace(made, output=report))  # outputs are kept by those who read them
        return made

    def window(self, modules: Collection[str]) -> int:
        """Batches of a flow over these modules that may be in flight at a time."""
        return 2 * sum(len(self._replicas[name]) for name in modules) if self.cluster.overlaps else 1

    def call_step(
        self, module: BaseModule, step: str, data: Sequence[Batch], constants: Mapping[str, Any]
    ) -> Batch | None:
        """Runs one step on batches of the driver and returns its output; what it logs is dropped."""
        signature = step_signature(step_functions(module)[step])
        names = [f"*{i}" for i in range(len(data))] if signature.variadic else signature.data
        parts = [tuple(data)] if signature.merges else [(batch,) for batch in data]
        if len(parts) != len(names):
            raise EngineError(
                f"engine.call: {module.name}.{step} takes {', '.join(names)}, but {len(data)} batches are given."
            )
        ids = SampleIds(tuple(range(num_rows(data[0]))), tuple(range(num_rows(data[0]))))
        call = StepCall(
            step=step,
            phase="call",
            occurrence=0,
            index=0,
            constants=with_clients(dict(constants), self._ref, BaseModule),
            run_parameters={
                "iteration": 0,
                "train_info": {"iteration": 0, "episode": 0, "epoch": 0},
                "is_eval": step == "eval_step",
            },
            ids=ids,
            used=False,
            micro_batch_size=self.config.runtime.train_micro_batch_size if step == "train_step" else None,
            place="engine.call",
        )
        inputs = {name: ((Rows(batches),),) for name, batches in zip(names, parts, strict=True)}
        output, _ = self.cluster.call_pair(self._replicas[module.name][0], "run", call, inputs)
        return self.cluster.get(output)

    def settle(self) -> None:
        """Waits for all calls and takes their reports: phase by phase, batch by batch (training on arrival goes out
        between rollouts, and batches overtake each other; what is put and summed does not depend on that).
        """
        pending = sorted(self._pending, key=lambda call: (_TURNS.get(call.phase, len(_TURNS)), call.turn))
        self._pending = []
        for call in pending:
            report: Report = self.cluster.get(call.report)
            self.metrics.add(report.metrics, "eval/" if call.phase == "eval" else "")
            self.puts.update(report.puts)
            if self.trace is not None and report.end > report.start > 0:
                waited = max(report.start - call.submitted, 0.0)
                details = {"phase": call.phase, "episode": call.episode, "batch": call.index}
                self.trace.add(
                    str(call.handle), call.name, report.start, report.end, waited, **details, rows=call.num_rows
                )
                for track, name, asked, start, end, rows, caller in report.spans:
                    waited = max(start - asked, 0.0)
                    self.trace.add(track, name, start, end, waited, **details, rows=rows, caller=caller)

    @contextmanager
    def own_metrics(self) -> Generator[None]:
        """Inside, metrics are collected apart from those of the episode; calls that fail leave nothing behind."""
        self.settle()
        episodes, self.metrics = self.metrics, MetricBuffer()
        try:
            yield
        except BaseException:
            self._pending = []
            raise
        finally:
            self.metrics = episodes

    def take_metrics(self) -> dict[str, float]:
        """Reduced metrics of all calls since the last time; waits for these calls."""
        self.settle()
        return self.metrics.take()

    def _hook(self, method: str, handles: Sequence[Handle], *args: Any) -> None:
        for future in [self.cluster.call(handle, method, *args) for handle in handles]:
            self.cluster.get(future)
        for name in dict.fromkeys(handle.module for handle in handles):
            self._remember(name, "setup" if method == "setup" else "hook", *args)
        for handle in handles:
            report = self.cluster.call(handle, "take_report")
            self._pending.append(Call(report, report, "hook", handle, method))

    def _move(self, name: str, hook: str, tags: tuple[str, ...]) -> Callable[[], object]:
        futures = [self.cluster.call(handle, "move", hook, tags) for handle in self._replicas[name]]
        return lambda: [self.cluster.get(future) for future in futures]

    def given_up(self, name: str) -> tuple[str, ...]:
        """Tags of the memory that a module has given up at present."""
        return self._residency.given_up(name)

    def _use_padding(self) -> None:
        """Tells every replica the padding rules of all modules."""
        declared = [
            (name, self.cluster.get(self.cluster.call(handles[0], "padding")))
            for name, handles in self._replicas.items()
        ]
        self.padding = padding_rules(declared)
        if self.padding:
            for future in [self.cluster.call(handle, "use_padding", self.padding) for handle in self.handles()]:
                self.cluster.get(future)
            for name in self._replicas:
                self._remember(name, "use_padding", self.padding)

    def _ref(self, module: BaseModule) -> ClientRef:
        """A module among the constants of a call, as it travels."""
        steps = {name: step_signature(function).data for name, function in step_functions(module).items()}
        return ClientRef(module.name, steps, len(self._replicas[module.name]))

    def _share(self, values: Mapping[str, Any]) -> None:
        self.shared.update(values)
        for future in [self.cluster.call(handle, "share", dict(values)) for handle in self.handles()]:
            self.cluster.get(future)


Lasting = tuple[str, tuple[Any, ...]]
"""A call that made a replica what it is: method of its worker, arguments."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is on its way, or has ended.

    Attributes:
        output: future of what the step returns.
        report: future of its :class:`~chatlearn.runtime.calls.Report`.
        phase: of the run.
        handle: the replica.
        name: of the step, for people.
        index: number of the batch.
        num_rows: of the input.
        submitted: ``time.perf_counter()`` when it went out, in seconds.
        episode: that it belongs to, from 1; of an evaluation the number of complete ones.
        turn: when its report is taken.
    """

    output: Future
    report: Future
    phase: str
    handle: Handle
    name: str
    index: int = 0
    num_rows: int = 0
    submitted: float = 0.0
    episode: int = 0
    turn: int = 0


class Trace(Protocol):
    """Where the spans of calls go; times in seconds of ``time.perf_counter()``."""

    def add(self, track: str, name: str, start: float, end: float, waited: float, **args: Any) -> None:
        """Takes the span of one call; ``waited`` is the time between its submission and its start."""
        ...


def _model_args(module: BaseModule, model: ModelConfig) -> Any:
    """The user's hyper-parameters, as the class's ``Args`` if it has one (they were checked before)."""
    checked = type(module).Args
    return dict(model.args) if checked is None else checked(**model.args)
