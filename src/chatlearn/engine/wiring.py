"""What an engine is put together from: flows, data, syncs, callbacks, and the configuration they are checked with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

from chatlearn.checkpoint.module_state import drifting_modules
from chatlearn.config.active import active_generation, get_config, init
from chatlearn.config.schema import Config, ModelConfig
from chatlearn.data.replay import SampleFunction
from chatlearn.engine.callbacks import Callback, Callbacks
from chatlearn.engine.check import check_datasets, check_modules, check_reads, check_syncs, collect_modules
from chatlearn.engine.checkpoints import Kept
from chatlearn.engine.environment import Environment
from chatlearn.engine.evaluator import Evaluator
from chatlearn.engine.prompts import Prompts
from chatlearn.engine.replay import Replay
from chatlearn.engine.trainer import Trainer
from chatlearn.errors import EngineError
from chatlearn.guards import is_instance
from chatlearn.modules.base import BaseModule, take_ownership

_Part = TypeVar("_Part")


def _checked(part: _Part | None, kind: type[_Part], role: str) -> _Part | None:
    """One of the three parts of an engine, or nothing."""
    if part is None or is_instance(part, kind):
        return part
    hint = "Write Engine(environment, trainer, evaluator), with None for what is not there"
    if callable(part):
        hint = f"Wrap the flow: {kind.__name__}(flow)"
    raise EngineError(f"The {role} of an engine has the type {kind.__name__}, got {_type_name(part)}. {hint}.")


def _with_optional_entries(config: Config, modules: Mapping[str, BaseModule]) -> Config:
    """The configuration, with an empty entry for each module that may do without one."""
    missing = {n: ModelConfig() for n, each in modules.items() if each.optional_entry and n not in config.models}
    return config.model_copy(update={"models": {**config.models, **missing}}) if config.models and missing else config


def _type_name(value: object) -> str:
    return type(value).__name__


class Wiring:
    """The parts of an engine. Setters return the engine, so they chain."""

    def __init__(self, environment: Environment | None, trainer: Trainer | None, evaluator: Evaluator | None) -> None:
        self.environment = _checked(environment, Environment, "environment")
        self.trainer = _checked(trainer, Trainer, "trainer")
        self.evaluator = _checked(evaluator, Evaluator, "evaluator")
        self._take_modules()
        self._prompts: Prompts | None = None
        self._pairs: list[tuple[BaseModule, BaseModule, int | None]] = []
        self._replay_function: SampleFunction | None = None
        self._callbacks = Callbacks()
        self._generation = 0
        self._config: Config | None = None

    def set_environment(self, environment: Environment | None) -> Self:
        """Replaces the environment.

        Raises:
            EngineError: it is none.
        """
        self.environment = _checked(environment, Environment, "environment")
        self._take_modules()
        return self

    def set_trainer(self, trainer: Trainer | None) -> Self:
        """Replaces the trainer.

        Raises:
            EngineError: it is none.
        """
        self.trainer = _checked(trainer, Trainer, "trainer")
        self._take_modules()
        return self

    def set_evaluator(self, evaluator: Evaluator | None) -> Self:
        """Replaces the evaluator.

        Raises:
            EngineError: it is none.
        """
        self.evaluator = _checked(evaluator, Evaluator, "evaluator")
        self._take_modules()
        return self

    def set_dataset(self, prompts: Sequence[Any] | str | Path) -> Self:
        """Sets the prompts of the environment, or of the trainer where there is no environment.

        Args:
            prompts: a sequence (a list, a Hugging Face data set, …), or the path of a file or folder of JSON Lines,
                Parquet, CSV or text.

        Raises:
            DataError: it is neither, or the file can't be read.
        """
        self._prompts = (self._prompts or Prompts()).of(prompts)
        return self

    def set_multiple_datasets(
        self, datasets: Sequence[Any] | Mapping[str, Any], data_ratio: Sequence[float] | None = None
    ) -> Self:
        """Sets several data sets, mixed in a fixed proportion.

        Args:
            datasets: a list of data sets, or a dict from names to data sets, each as in :meth:`set_dataset`.
            data_ratio: one positive number per data set; left out, ``runtime.data_ratio``, and without that the
                lengths of the data sets.

        Raises:
            EngineError: there are none, or the shares don't fit.
        """
        self._prompts = (self._prompts or Prompts()).several(datasets, data_ratio)
        return self

    def set_sampler(self, sampler: Callable[[int, int, int], int]) -> Self:
        """Chooses prompts by a function instead of reshuffled epochs.

        Args:
            sampler: a pure function ``(group, length, seed) -> index`` of the number of the draw (from 0, over the
                whole run), the number of prompts (of all data sets, one after another) and the run's seed. It holds
                no state, so a run that is resumed sees what it would have seen.

        Raises:
            EngineError: it can't be called.
        """
        if not callable(sampler):
            raise EngineError(f"set_sampler takes a function (group, length, seed) -> index, got {sampler!r}.")
        self._prompts = replace(self._prompts or Prompts(), sampler=sampler)
        return self

    def set_replay_sample_fn(self, function: SampleFunction) -> Self:
        """Chooses what each episode is trained on, among the experience of the last ``runtime.max_replay_episode``
        episodes.

        Args:
            function: from a list of :class:`~chatlearn.data.replay.EpisodeBuffer`, the oldest first and the current
                one last, to a list of their samples: ``[sample for episode in episodes for sample in episode.samples]``
                is what is done without a function. It runs in the driver once an episode's experience is complete.

        Raises:
            EngineError: it can't be called.
        """
        if not callable(function):
            raise EngineError(f"set_replay_sample_fn takes a function of a list of episodes, got {function!r}.")
        self._replay_function = function
        return self

    def set_relay_sample_fn(self, function: SampleFunction) -> Self:
        """ChatLearn's spelling of :meth:`set_replay_sample_fn`."""
        return self.set_replay_sample_fn(function)

    def set_parameter_sync(self, source: BaseModule, destination: BaseModule, frequency: int | None = None) -> Self:
        """After each training phase, and before the first episode, ``destination.model`` gets the weights of
        ``source.model``.

        Args:
            source: the trained module.
            destination: the module that follows it.
            frequency: episodes from one sync to the next; left out, ``models.<source>.sync_frequency`` (1).

        Raises:
            EngineError: the frequency is no positive integer, or one of the two is no module.
        """
        for module in (source, destination):
            if not is_instance(module, BaseModule):
                raise EngineError(f"set_parameter_sync takes two modules, got {_type_name(module)} {module!r}.")
        if frequency is not None and (type(frequency) is not int or frequency < 1):
            raise EngineError(f"set_parameter_sync: frequency is a number of episodes from 1 on, got {frequency!r}.")
        self._pairs.append((source, destination, frequency))
        return self

    def add_callback(self, point: str, function: Callback) -> Self:
        """Has ``function(info)`` called at a point of each episode.

        Args:
            point: one of :data:`~chatlearn.engine.callbacks.POINTS`: ``before_episode``, ``after_experience``,
                ``after_train``, ``after_sync``, ``after_episode``, ``after_evaluate``, ``after_log``, ``after_save``.
            function: gets an :class:`~chatlearn.engine.callbacks.EpisodeInfo`; runs in the driver.

        Raises:
            EngineError: there is no such point.
        """
        self._callbacks.add(point, function)
        return self

    @property
    def _trains_on_arrival(self) -> bool:
        """Training may begin before the experience is complete: as asked for, where no module is in both flows, and
        nothing is replayed.
        """
        dynamic = self._settled.runtime.stream_data_loader_type == "dynamic"
        return dynamic and self.trainer is not None and not self._in_both_flows and not self._replays

    @property
    def _replays(self) -> bool:
        """Not simply the current episode is trained on."""
        return self._replay_function is not None or self._settled.runtime.max_replay_episode not in (0, 1)

    @property
    def _in_both_flows(self) -> list[str]:
        if self.environment is None or self.trainer is None:
            return []
        return [name for name in self.environment.graph.modules if name in self.trainer.graph.modules]

    @property
    def _at_work_at_first(self) -> set[str]:
        """Names of the modules that an episode begins with."""
        first = [self.environment, self.trainer] if self._trains_on_arrival else [self.environment]
        return {name for executor in first if executor is not None for name in executor.graph.modules}

    @property
    def _trains_or_samples(self) -> bool:
        return self.environment is not None or self.trainer is not None

    @property
    def _executors(self) -> list[Environment | Trainer | Evaluator]:
        return [executor for executor in (self.environment, self.trainer, self.evaluator) if executor is not None]

    @property
    def _modules(self) -> dict[str, BaseModule]:
        return collect_modules(executor.graph for executor in self._executors)

    @property
    def _settled(self) -> Config:
        """The configuration of this engine: what ``init`` had set when the engine first needed it; else as by
        ``init()``.

        Raises:
            EngineError: ``init`` was called again since then.
        """
        if self._config is None:
            self._config = _with_optional_entries(get_config() if active_generation() else init(), self._modules)
            self._generation = active_generation()
        if self._generation != active_generation():
            raise EngineError(
                "chatlearn.init() was called again after this engine was used: a new run has begun, and the engines of "
                "the one before are closed. Make modules and engine anew."
            )
        return self._config

    @property
    def settled_modules(self) -> tuple[Config, list[str]]:
        """The configuration that the engine was checked with, and the names of its modules.

        Raises:
            ConfigError: it was not checked yet, and there is no configuration.
        """
        modules = self._modules
        return self._config or _with_optional_entries(get_config(), modules), list(modules)

    def _take_modules(self) -> None:
        for executor in self._executors:
            for module in executor.graph.modules.values():
                take_ownership(module)

    def _checked_notes(self) -> list[str]:
        modules = self._modules
        notes = check_modules(self._settled, modules, self.environment, self.trainer, self.evaluator)
        if (maker := self.environment or self.trainer) is not None:
            maker.prompts = (self._prompts or Prompts()).over(maker.given).configured(self._settled)
        check_datasets(self.environment, self.trainer, self.evaluator)
        check_reads(self.environment, self.trainer, self.evaluator)
        check_syncs([pair[:2] for pair in self._pairs], modules)
        return notes + self._why_training_waits()

    def _why_training_waits(self) -> list[str]:
        if self._settled.runtime.stream_data_loader_type != "dynamic" or self.trainer is None:
            return []
        if both := self._in_both_flows:
            why = f"{', '.join(both)} is in the environment's and in the trainer's flow"
        elif self._replays:
            why = "experience is replayed"
        else:
            return []
        waits = "training waits until the experience is complete, as with runtime.stream_data_loader_type=fixed."
        return [f"{why}, so {waits}"]

    def _frequencies(self) -> Iterator[tuple[BaseModule, BaseModule, int]]:
        """The synced pairs, with the episodes from one sync to the next."""
        for source, destination, frequency in self._pairs:
            yield source, destination, frequency or self._settled.model(source.name).sync_frequency

    def _kept(self) -> Kept:
        """What the checkpoints of a run hold."""
        pairs = list(self._frequencies())
        datasets: dict[str, Sequence[Any]] = {}
        if (source := self.environment or self.trainer) is not None:
            datasets |= _numbered("train", source.prompts.datasets)
        return Kept(
            modules=self._modules,
            trained=() if self.trainer is None else tuple(self.trainer.graph.modules),
            synced={destination.name: frequency for _, destination, frequency in pairs},
            drifting=drifting_modules((source, destination) for source, destination, _ in pairs),
            replay=Replay(self._settled.runtime, self._replay_function) if self._replays else None,
            datasets=datasets,
        )


def _numbered(name: str, parts: Sequence[Any]) -> dict[str, Any]:
    return {name: parts[0]} if len(parts) == 1 else {f"{name}.{number}": part for number, part in enumerate(parts)}
