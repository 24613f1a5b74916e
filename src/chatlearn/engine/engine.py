"""The episode loop over environment, trainer and evaluator."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

from chatlearn.checkpoint.run_folder import RunFolder, claim_run_folder
from chatlearn.config.active import active_generation, get_config, init
from chatlearn.config.schema import Config
from chatlearn.data.stream import StreamDataset
from chatlearn.engine.check import check_datasets, check_modules, check_syncs, collect_modules
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.environment import Environment
from chatlearn.engine.evaluator import Evaluation, Evaluator
from chatlearn.engine.run import Run
from chatlearn.engine.trainer import Trainer
from chatlearn.errors import EngineError
from chatlearn.flow.render import render
from chatlearn.modules.base import BaseModule, take_ownership
from chatlearn.runtime.seeding import derive_seed, preserved_globals
from chatlearn.sync.sync import ParameterSync
from chatlearn.types import Batch


class Interrupted(KeyboardInterrupt, SystemExit):
    """The run was ended by Ctrl-C or SIGTERM, with everything closed. Uncaught, the process exits with ``code`` (130
    or 143).
    """

    def __init__(self, code: int) -> None:
        SystemExit.__init__(self, code)


_only_checking: ContextVar[list[Engine] | None] = ContextVar("only_checking", default=None)


@contextmanager
def checking_only() -> Iterator[list[Engine]]:
    """Yields the engines that were checked. Inside, ``learn()`` checks and prints its flows instead of running
    (``chatlearn check program.py``).

    What needs results (``evaluate``, ``call``, ``run``) ends the program.
    """
    checked: list[Engine] = []
    token = _only_checking.set(checked)
    try:
        yield checked
    finally:
        _only_checking.reset(token)


class Engine:
    """Makes experience, trains on it, keeps rollout weights in step, measures, saves.

    Args:
        environment: makes experience; without one the data set feeds the trainer directly.
        trainer: trains; without one experience is made and recorded only.
        evaluator: measures; optional.
    """

    def __init__(
        self,
        environment: Environment | None = None,
        trainer: Trainer | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.environment, self.trainer, self.evaluator = environment, trainer, evaluator
        self._take_modules()
        self._prompts: Sequence[Any] | None = None
        self._pairs: list[tuple[BaseModule, BaseModule]] = []
        self._config: Config | None = None
        self._deployment: Deployment | None = None
        self._run: Run | None = None
        self._syncs: list[ParameterSync] = []

    def set_environment(self, environment: Environment | None) -> Engine:
        """Replaces the environment."""
        self.environment = environment
        self._take_modules()
        return self

    def set_trainer(self, trainer: Trainer | None) -> Engine:
        """Replaces the trainer."""
        self.trainer = trainer
        self._take_modules()
        return self

    def set_evaluator(self, evaluator: Evaluator | None) -> Engine:
        """Replaces the evaluator."""
        self.evaluator = evaluator
        self._take_modules()
        return self

    def set_dataset(self, prompts: Sequence[Any]) -> Engine:
        """Sets the prompts of the environment, or of the trainer where there is no environment."""
        self._prompts = prompts
        return self

    def set_parameter_sync(self, source: BaseModule, destination: BaseModule) -> Engine:
        """After each training phase, and before the first episode, ``destination.model`` gets the weights of
        ``source.model``.
        """
        self._pairs.append((source, destination))
        return self

    def learn(self) -> Evaluation | None:
        """Runs the episodes of the configuration: experience, training, sync, evaluation, record, checkpoint.

        Returns:
            The last evaluation, if there was one.

        Raises:
            ChatLearnError: with what happened, where, and how to fix it; configuration and flows are checked before
                anything starts.
            Interrupted: Ctrl-C or SIGTERM; everything is closed and the run can be resumed.
        """
        if _only_checking.get() is not None:
            print(self.check())
            return None
        folder = self._claim_folder()
        if folder.finished:
            print(folder.note)
            self._run = Run(self._settled, folder, trained=[], synced=[])
            return None
        evaluation = None
        with self._running(folder) as run:
            self._sync_parameters(run, run.state.weight_version or 1)
            for _ in range(run.state.episode, self._num_episodes):
                self._hook("before_episode", run)
                experience = self._make_experience(run)
                self._train(run, experience)
                self._sync_parameters(run, run.state.weight_version + 1)
                self._hook("after_episode", run)
                metrics = self._end_episode(run)
                if self._evaluation_is_due(run):
                    evaluation = self._evaluate(run)
                    metrics |= evaluation.metrics
                run.log(metrics, len(experience))
                if run.save_is_due:
                    run.save(self._deployed)
            run.finish(self._deployed)
        return evaluation

    def evaluate(self, evaluator: Evaluator | None = None) -> Evaluation:
        """One evaluation with the weights as they are: before ``learn()`` those of ``setup``, afterwards the trained
        ones.

        Args:
            evaluator: over modules of this engine's flows; the engine's own if left out.

        Raises:
            EngineError: there is no evaluator, or it uses modules that the engine does not have.
        """
        evaluator = evaluator or self.evaluator
        if evaluator is None:
            raise EngineError(
                "The engine has no evaluator. Pass one, or call "
                "set_evaluator(Evaluator(eval_flow).set_dataset(prompts))."
            )
        self._deploy()
        if missing := sorted(set(evaluator.graph.modules) - set(self._deployed.names)):
            raise EngineError(
                f"{evaluator.graph.name} uses {', '.join(missing)}, which no flow of the engine calls. Use the "
                "engine's modules."
            )
        with preserved_globals():
            return evaluator.evaluate(self._deployed, "evaluation")

    def call(self, step: Callable[..., Any], *data: Batch) -> Batch | None:
        """Runs one step of a module of this engine, as in ``engine.call(policy.forward_step, {"prompt": […]})``.

        Several batches are merged into one dict, or passed separately, as in a flow.

        Raises:
            EngineError: ``step`` is no step of one of the engine's modules.
            StepError: the step raised.
        """
        module = getattr(step, "__self__", None)
        name = next((n for n in getattr(module, "_step_functions", ()) if getattr(module, n) == step), None)
        if not data or module is None or name is None or self._modules.get(module.name) is not module:
            raise EngineError(
                "engine.call takes a step of a module of its flows, as in engine.call(policy.forward_step, data)."
            )
        self._deploy()
        with preserved_globals():
            return self._deployed.call_step(module, name, data)

    def check(self) -> str:
        """Checks configuration, flows and data sets without starting anything; returns the flows as text, with notes.

        Raises:
            ChatLearnError: what is wrong.
        """
        if (checked := _only_checking.get()) is not None:
            checked.append(self)
        return "\n\n".join([*(render(executor.graph) for executor in self._executors), *self._checked_notes()])

    def stop(self) -> None:
        """Ends all replicas. A later call starts them anew."""
        if self._deployment is not None:
            self._deployment.stop()
            self._deployment = None

    @property
    def run(self) -> Run:
        """The record of the run: its folder, its counters.

        Raises:
            EngineError: ``learn()`` has not begun.
        """
        self._end_of_check()
        if self._run is None:
            raise EngineError("The engine has no run yet; it begins with learn().")
        return self._run

    # -- the parts of an episode --

    def _make_experience(self, run: Run) -> StreamDataset:
        runtime, episode = run.config.runtime, run.state.episode
        experience = StreamDataset(
            runtime.train_global_batch_size, lambda epoch: derive_seed(runtime.seed, "order", episode, epoch)
        )
        if self.environment is not None:
            self.environment.make_experience(self._deployed, run.state, experience)
            run.log_samples(self._deployed, experience.experience)
        elif self.trainer is not None:
            self.trainer.read_dataset(self._deployed, run.state, experience)
        run.lap("experience")
        return experience

    def _train(self, run: Run, experience: StreamDataset) -> None:
        if self.trainer is not None:
            self.trainer.train(self._deployed, run.state, experience)
            run.lap("train")

    def _sync_parameters(self, run: Run, version: int) -> None:
        for sync in self._syncs:
            sync.sync(version)
            run.state.weight_version = version
        run.lap("sync")

    def _hook(self, method: str, run: Run) -> None:
        self._deployed.hook(method, f"episode {run.state.episode + 1}")

    def _end_episode(self, run: Run) -> dict[str, float]:
        run.state.episode += 1
        return self._deployed.take_metrics()

    def _evaluate(self, run: Run) -> Evaluation:
        assert self.evaluator is not None
        evaluation = self.evaluator.evaluate(self._deployed, f"evaluation after episode {run.state.episode}")
        run.lap("evaluate")
        return evaluation

    def _evaluation_is_due(self, run: Run) -> bool:
        if self.evaluator is None:
            return False
        interval = run.config.runtime.eval_episode_interval
        return not self._trains_or_samples or bool(interval and run.state.episode % interval == 0)

    # -- starting and ending --

    @property
    def _trains_or_samples(self) -> bool:
        return self.environment is not None or self.trainer is not None

    @property
    def _num_episodes(self) -> int:
        """An engine that only measures does so once."""
        return self._settled.runtime.num_episode if self._trains_or_samples else 1

    @property
    def _executors(self) -> list[Environment | Trainer | Evaluator]:
        return [executor for executor in (self.environment, self.trainer, self.evaluator) if executor is not None]

    @property
    def _modules(self) -> dict[str, BaseModule]:
        return collect_modules(executor.graph for executor in self._executors)

    @property
    def _deployed(self) -> Deployment:
        assert self._deployment is not None
        return self._deployment

    @property
    def _settled(self) -> Config:
        """The configuration of this engine: what ``init`` had set when the engine first needed it; else as by
        ``init()``.
        """
        if self._config is None:
            self._config = get_config() if active_generation() else init()
        return self._config

    def _take_modules(self) -> None:
        for executor in self._executors:
            for module in executor.graph.modules.values():
                take_ownership(module)

    def _checked_notes(self) -> list[str]:
        modules = self._modules
        trained = [] if self.trainer is None else [n.module.name for n in self.trainer.graph if n.step == "train_step"]
        notes = check_modules(self._settled, modules, list(dict.fromkeys(trained)))
        if self._prompts is not None and self.environment is not None:
            self.environment.prompts = self._prompts
        elif self._prompts is not None and self.trainer is not None:
            self.trainer.prompts = self._prompts
        check_datasets(self.environment, self.trainer, self.evaluator)
        check_syncs(self._pairs, modules)
        return notes

    def _end_of_check(self) -> None:
        """A check starts nothing, so it ends where the program goes on with what only a run can give."""
        if _only_checking.get() is not None:
            if self._config is None:
                print(self.check())
            print("The check ends here: the program goes on with results.")
            raise SystemExit(0)

    def _claim_folder(self) -> RunFolder:
        if self._run is not None:
            raise EngineError("This engine has learned already. Make a new one; or resume its run with runtime.resume.")
        self._checked_notes()
        runtime = self._settled.runtime
        return claim_run_folder(runtime.output_dir, runtime.exp_name, runtime.resume)

    def _deploy(self) -> None:
        """Starts the modules, once."""
        if self._deployment is not None:
            return
        self._end_of_check()
        notes = self._checked_notes()
        deployment = Deployment(self._settled, self._modules)
        try:
            with preserved_globals():
                deployment.start()
        except BaseException:
            deployment.stop()
            raise
        self._deployment = deployment
        for note in notes:
            print(f"note: {note}")

    @contextmanager
    def _running(self, folder: RunFolder) -> Iterator[Run]:
        """Everything open; afterwards files are closed, on whatever way out."""
        trained = [] if self.trainer is None else list(self.trainer.graph.modules)
        run = self._run = Run(self._settled, folder, trained, [destination.name for _, destination in self._pairs])
        run.check_resume(self._modules)
        with preserved_globals(), _sigterm_raises():
            try:
                run.write_config()
                self._deploy()
                run.open(self._deployed, self._num_episodes)
                self._syncs = open_syncs(self._deployed, self._pairs, run.note)
                with _frozen_heap():
                    run.lap("setup")
                    yield run
            except KeyboardInterrupt as interrupt:
                run.end("interrupted")
                self.stop()
                raise Interrupted(getattr(interrupt, "code", 130)) from None
            except BaseException:
                run.end("failed")
                self.stop()
                raise


def open_syncs(
    deployment: Deployment, pairs: Sequence[tuple[BaseModule, BaseModule]], note: Callable[[str], None]
) -> list[ParameterSync]:
    """Plans the sync of each pair; a pair without parameters is a note.

    Raises:
        SyncError: the weights of a pair do not fit.
    """
    syncs = [
        ParameterSync(deployment.cluster, deployment.handles(source.name)[0], deployment.handles(destination.name))
        for source, destination in pairs
    ]
    for sync in syncs:
        if sync.note:
            note(f"note: {sync.note}")
    return syncs


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """What is alive before a run stays so: the garbage collector need not walk over it again and again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does (in the main thread, where signals arrive)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
