"""Everything about an engine that can be known to be wrong before anything starts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from chatlearn.config.check import Problem, check_args, check_models, raise_problems
from chatlearn.config.schema import Config, ModelConfig
from chatlearn.data.prompts import num_samples, read_sample
from chatlearn.engine.check_backend import check_backend, check_sendable
from chatlearn.engine.environment import Environment
from chatlearn.engine.evaluator import Evaluator
from chatlearn.engine.refill import drops_rows
from chatlearn.engine.residency import can_offload, offload_tags
from chatlearn.engine.trainer import Trainer
from chatlearn.errors import DataError, EngineError, FlowError, ModuleError
from chatlearn.flow.clients import check_clients
from chatlearn.flow.contracts import UNKNOWN_DATA, Known, missing_reads, yields
from chatlearn.flow.graph import Graph
from chatlearn.guards import is_mapping
from chatlearn.modules.base import BaseModule
from chatlearn.observe.sinks import check_sinks
from chatlearn.runtime.worker import check_replicable


def collect_modules(graphs: Iterable[Graph]) -> dict[str, BaseModule]:
    """The modules of all flows, by name, in the order of their first call; clients after their callers.

    Raises:
        ModuleError: two modules have one name.
        FlowError: modules are clients of each other.
    """
    graphs = list(graphs)
    check_clients(node for graph in graphs for node in graph)
    modules: dict[str, BaseModule] = {}
    calls = [(node.where, module) for graph in graphs for node in graph for module in (node.module, *node.clients)]
    for where, module in calls:
        known = modules.setdefault(module.name, module)
        if known is not module:
            raise ModuleError(
                f"{where}: two modules are called {module.name!r} ({type(known).__name__} and "
                f"{type(module).__name__}). Names are unique in a run, since models.<name> configures one module: "
                f"rename one."
            )
    return modules


def check_modules(
    config: Config,
    modules: Mapping[str, BaseModule],
    environment: Environment | None,
    trainer: Trainer | None,
    evaluator: Evaluator | None = None,
) -> list[str]:
    """Holds the configuration against the modules of the flows.

    Returns:
        Notes, such as a configured model that no flow uses.

    Raises:
        ConfigError: all problems at once.
        ModuleError: a stateful module with several replicas, or one that a worker can't be told to construct.
    """
    trained = list(dict.fromkeys(n.module.name for n in trainer.graph if n.step == "train_step")) if trainer else []
    problems, notes = check_models(config, list(modules), trained)
    for name, module in modules.items():
        problems += check_args(name, type(module).Args, config)
    problems += check_trained(config, trained)
    problems += check_callable(config, [part.graph for part in (environment, trainer, evaluator) if part is not None])
    problems += check_groups(config, environment, trainer) + check_position(config) + check_backend(config, modules)
    sinks = "runtime.sinks"
    problems += [
        Problem(config.sources.get(sinks, ""), sinks, text) for text in check_sinks(config.runtime.sinks or [])
    ]
    raise_problems(problems + check_export(config, modules))
    for name, module in modules.items():
        check_replicable(module, config.model(name).num_replica)
    check_sendable(config, modules)
    return notes + check_offload(config, modules) + check_refill(config, environment)


def _section(config: Config, name: str) -> ModelConfig:
    """A model's section; of one that has none though others do, which is a problem of its own, the defaults."""
    return config.models.get(name) or ModelConfig()


def check_callable(config: Config, graphs: Iterable[Graph]) -> list[Problem]:
    """The steps of the flows can be called under the configuration."""
    problems: list[Problem] = []
    called = {(node.module.name, node.step): node.module for graph in graphs for node in graph}
    for (name, step), module in called.items():
        if (reason := module.why_not(step, _section(config, name).args)) is not None:
            key, (message, fix) = f"models.{name}.args", reason
            problems.append(Problem(config.sources.get(key, ""), key, message, fix))
    return problems


def check_trained(config: Config, trained: Collection[str]) -> list[Problem]:
    """A trained module has one replica: another one would never see what the first has learned."""
    problems: list[Problem] = []
    for name in trained:
        if (num := _section(config, name).num_replica) > 1:
            key = f"models.{name}.num_replica"
            message = (
                f"is {num}, but the trainer's flow trains {name!r}, and one replica never sees what another learns"
            )
            fix = "set it to 1; inference modules may have several"
            problems.append(Problem(config.sources.get(key, ""), key, message, fix))
    return problems


def check_groups(config: Config, environment: Environment | None, trainer: Trainer | None) -> list[Problem]:
    """No batch splits the samples of one prompt: what counts samples is a multiple of ``num_inference_per_prompt``."""
    runtime = config.runtime
    group = runtime.num_inference_per_prompt
    sizes = {
        "runtime.sample_per_episode": runtime.sample_per_episode,
        "runtime.consumed_samples": runtime.consumed_samples,
    }
    if runtime.refill_round_size is not None:
        sizes["runtime.refill_round_size"] = runtime.refill_round_size
    if trainer is not None:
        sizes["runtime.train_global_batch_size"] = runtime.train_global_batch_size
    for name in () if environment is None else environment.graph.modules:
        own = _section(config, name).generation_batch_size
        key = "runtime.generation_batch_size" if own is None else f"models.{name}.generation_batch_size"
        sizes[key] = own or runtime.generation_batch_size
    return [
        Problem(
            config.sources.get(key, ""),
            key,
            f"is {size}, but runtime.num_inference_per_prompt is {group}, and no batch splits the samples of a prompt",
            f"set it to {-(-size // group) * group}, or another multiple of {group}",
        )
        for key, size in sizes.items()
        if size % group
    ]


MAX_CONSUMED_SAMPLES = 2**46
"""With it ids of samples stay below 2**63, also those of rows that a step has made of a sample."""


def check_position(config: Config) -> list[Problem]:
    """The position that a run begins at leaves room for the ids of its samples."""
    key = "runtime.consumed_samples"
    if config.runtime.consumed_samples <= MAX_CONSUMED_SAMPLES:
        return []
    message = f"is more than {MAX_CONSUMED_SAMPLES}, so that ids of samples would not fit into 64 bits"
    fix = "set it to the number of samples that were used before"
    return [Problem(config.sources.get(key, ""), key, message, fix)]


def check_offload(config: Config, modules: Mapping[str, BaseModule]) -> list[str]:
    """Notes on modules that are to give up memory but can't, or have no need to."""
    notes: list[str] = []
    for name, module in modules.items():
        asked, tags = config.model(name).offload_tags, offload_tags(config, name, modules)
        if asked and not tags:
            notes.append(
                f"models.{name}.free_memory has no effect, since {name} shares its devices with no other model of the "
                f"run. Name both in runtime.colocation, or set force_free_memory."
            )
        elif tags and not can_offload(module):
            notes.append(
                f"models.{name} is to give up {', '.join(tags)} while it waits, but {type(module).__name__} has no "
                f"offload(tags) and onload(tags), so it keeps them."
            )
    return notes


def check_refill(config: Config, environment: Environment | None) -> list[str]:
    """Notes on further rounds of prompts that will never come."""
    runtime = config.runtime
    if not runtime.max_refill_rounds:
        unused = "runtime.refill_round_size is set, but runtime.max_refill_rounds is 0, so there are no further rounds."
        return [unused] if runtime.refill_round_size is not None else []
    if environment is not None and drops_rows(environment.graph):
        return []
    flow = "there is no environment" if environment is None else f"no step of {environment.graph.name} filters"
    return [
        f"runtime.max_refill_rounds is {runtime.max_refill_rounds}, but {flow}, so nothing is ever refilled. Mark the "
        f"step that drops samples with @chatlearn.step(filters=True), or set it to 0."
    ]


def check_export(config: Config, modules: Mapping[str, BaseModule]) -> list[Problem]:
    """What ``runtime.export`` names has to be a module of the flows, and able to."""
    where = config.sources.get("runtime.export", "")
    problems: list[Problem] = []
    for name in config.runtime.export:
        if name not in modules:
            message, fix = f"no flow uses a module `{name}`", f"use one of: {', '.join(modules)}"
        elif not callable(getattr(modules[name], "export", None)):
            message = f"{type(modules[name]).__name__} (module {name!r}) has no method export(path)"
            fix = "define it, or take the name off the list"
        else:
            continue
        problems.append(Problem(where, "runtime.export", message, fix))
    return problems


def check_datasets(environment: Environment | None, trainer: Trainer | None, evaluator: Evaluator | None) -> None:
    """Every part that reads prompts has some, and what is made is used.

    Raises:
        EngineError: there is nothing to run, or a data set is missing.
        DataError: a data set is empty.
        FlowError: a flow never takes the raw batch, or an environment yields nothing to its trainer.
    """
    if environment is trainer is evaluator is None:
        raise EngineError("The engine has no environment, no trainer and no evaluator. Give it at least one.")
    if environment is not None and trainer is not None and not environment.graph.outputs:
        raise FlowError(
            f"{environment.graph.where}: {environment.graph.name} returns nothing, so the trainer would get nothing. "
            f"Return the values that training needs, such as `return value_out, reward_out`."
        )
    maker = environment or trainer
    if maker is not None:
        _check_readable(
            maker.graph, dict(enumerate(maker.prompts.datasets)) or {0: None}, "engine.set_dataset(prompts)"
        )
    if evaluator is not None:
        _check_readable(evaluator.graph, evaluator.datasets or {"": None}, "Evaluator(…).set_dataset(prompts)")


def _check_readable(graph: Graph, datasets: Mapping[Any, Any], setter: str) -> None:
    for which, prompts in _named(datasets).items():
        if prompts is None:
            raise EngineError(f"{graph.name} has no data set. Call `{setter}`.")
        if not hasattr(prompts, "__len__") or not hasattr(prompts, "__getitem__"):
            kind = type(prompts).__name__
            raise DataError(f"The prompts of {graph.name} are {kind}; give a list or another sequence with a length.")
        if num_samples(prompts, f"{which} of {graph.name}") == 0:
            raise DataError(
                f"{which[0].upper()}{which[1:]} of {graph.name} is empty. Give `{setter}` at least one prompt."
            )
    if graph.root is None:
        raise FlowError(f"{graph.where}: no step of {graph.name} takes the raw batch.")


def _named(datasets: Mapping[Any, Any]) -> dict[str, Any]:
    """Data sets by the words that errors use for them."""
    several = len(datasets) > 1
    return {f"data set {name!r}" if several else "the data set": prompts for name, prompts in datasets.items()}


def check_reads(environment: Environment | None, trainer: Trainer | None, evaluator: Evaluator | None) -> None:
    """Every key that a module declares to read can be there.

    Raises:
        FlowError: a step reads what none of its inputs can hold; all are listed.
        DataError: the first prompt of a data set can't be read.
    """
    problems: list[str] = []
    raw, others = UNKNOWN_DATA, []
    if environment is not None:
        raw = _known_of(environment.graph, dict(enumerate(environment.prompts.datasets)))
        problems += missing_reads(environment.graph, raw)
        raw, others = yields(environment.graph, raw), [environment.graph]
    elif trainer is not None:
        raw = _known_of(trainer.graph, dict(enumerate(trainer.prompts.datasets)))
    if trainer is not None:
        problems += missing_reads(trainer.graph, raw, others=others)
    if evaluator is not None:
        problems += missing_reads(evaluator.graph, _known_of(evaluator.graph, evaluator.datasets))
    if problems:
        raise FlowError("\n".join(problems))


def _known_of(graph: Graph, datasets: Mapping[Any, Any]) -> Known:
    """Keys of the first prompts, if these are dicts; the data set that a module makes of them may hold more."""
    first = [
        read_sample(prompts, 0, f"sample 0 of {which} of {graph.name}") for which, prompts in _named(datasets).items()
    ]
    return UNKNOWN_DATA | Known(frozenset(key for sample in first if is_mapping(sample) for key in sample))


def check_syncs(pairs: Iterable[tuple[BaseModule, BaseModule]], modules: Mapping[str, BaseModule]) -> None:
    """Both modules of a sync have to take part in a flow.

    Raises:
        FlowError: one does not.
    """
    for pair in pairs:
        for module in pair:
            if modules.get(module.name) is not module:
                source, destination = (m.name for m in pair)
                raise FlowError(
                    f"set_parameter_sync({source}, {destination}): no flow of this engine calls a step of "
                    f"{module.name!r}. Use the same module "
                    f"objects in the flows and in the sync; the flows use {', '.join(modules)}."
                )
