"""The episode loop over environment, trainer and evaluator."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from chatlearn.checkpoint.run_folder import RunFolder
from chatlearn.data.stream import Experience, StreamDataset
from chatlearn.engine.callbacks import EpisodeInfo
from chatlearn.engine.deployment import Deployment
from chatlearn.engine.environment import Environment
from chatlearn.engine.evaluator import Evaluation, Evaluator
from chatlearn.engine.process import Interrupted, Termination, frozen_heap, sigterm_ends
from chatlearn.engine.recompute import claimed_folder, end_if_recomputed
from chatlearn.engine.restarts import Restarts, close_after
from chatlearn.engine.run import Run
from chatlearn.engine.syncs import open_syncs
from chatlearn.engine.trainer import Trainer
from chatlearn.engine.wiring import Wiring
from chatlearn.errors import EngineError, WorkerError
from chatlearn.flow.clients import find_clients
from chatlearn.flow.render import render
from chatlearn.guards import is_mapping
from chatlearn.observe.summary import summary_table
from chatlearn.runtime.seeding import derive_seed, deterministic_kernels, preserved_globals
from chatlearn.sync.sync import ParameterSync, synchronise
from chatlearn.types import Batch

_only_checking: ContextVar[list[Engine] | None] = ContextVar("only_checking", default=None)


@contextmanager
def checking_only() -> Generator[list[Engine]]:
    """Yields the engines that were checked. Inside, ``learn()`` checks and prints its flows instead of running
    (``chatlearn check program.py``); what needs results (``evaluate``, ``call``, ``run``) ends the program.
    """
    checked: list[Engine] = []
    token = _only_checking.set(checked)
    try:
        yield checked
    finally:
        _only_checking.reset(token)


class Engine(Wiring):
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
        super().__init__(environment, trainer, evaluator)
        self._now: EpisodeInfo | None = None
        self._stop_reason: str | None = None
        self._save_asked = False
        self._deployment: Deployment | None = None
        self._run: Run | None = None
        self._syncs: list[tuple[ParameterSync, int]] = []
        self._termination = Termination(0)

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
        with self._claimed_folder() as folder:
            if folder.finished:
                print(folder.note)
                self._run = Run(self._settled, folder)
                return None
            evaluation: Evaluation | None = None
            restarts = Restarts(folder, self._settled.runtime.max_restarts)
            for folder in restarts:
                with self._running(folder, restarts) as run:
                    self._sync_parameters(run, run.state.episode, is_first=True)
                    evaluation = self._evaluate_before(run) or evaluation
                    while run.state.episode < self._num_episodes and self._stop_reason is None:
                        with run.profile(run.state.episode + 1):
                            evaluation = self._run_episode(run) or evaluation
                    run.finish(self._deployed, self._stop_reason)
            return evaluation

    def _run_episode(self, run: Run) -> Evaluation | None:
        info = self._begin_episode(run)
        info.experience = self._make_experience(run)
        self._reach("after_experience", run)
        end_if_recomputed(run, self._deployed, info.experience)
        self._train(run, info.experience)
        self._reach("after_train", run)
        self._sync_parameters(run, run.state.episode + 1)
        self._reach("after_sync", run)
        self._end_episode(run, info)
        if self._evaluation_is_due(run):
            info.evaluation = self._evaluate(run)
            info.metrics |= info.evaluation.metrics
            self._reach("after_evaluate", run)
        run.log(info.metrics, len(info.experience))
        self._reach("after_log", run)
        self._save(run, info)
        return info.evaluation

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
        own = self._modules
        if missing := sorted(name for name, module in evaluator.graph.modules.items() if own.get(name) is not module):
            raise EngineError(
                f"{evaluator.graph.name} uses {', '.join(missing)}, which no flow of the engine calls. Use the "
                "engine's modules."
            )
        with self._globals():
            self._deployed.occupy(evaluator.graph.modules)
            episode, steps = (0, 0) if self._run is None else (self._run.state.episode, self._run.state.global_batches)
            return evaluator.evaluate(self._deployed, episode, steps)

    def call(self, step: Callable[..., Any], *data: Batch, **constants: Any) -> Batch | None:
        """Runs one step of a module of this engine, as in ``engine.call(policy.forward_step, {"prompt": […]})``.

        Several batches are merged into one dict, or passed separately, as in a flow; so are constants.

        Raises:
            EngineError: ``step`` is no step of one of the engine's modules, or the data are no batches.
            StepError: the step raised.
        """
        module = getattr(step, "__self__", None)
        name = next((n for n in getattr(module, "_step_functions", ()) if getattr(module, n) == step), None)
        batches = bool(data) and all(is_mapping(batch) for batch in data)
        if not batches or module is None or name is None or self._modules.get(module.name) is not module:
            raise EngineError(
                "engine.call takes a step of a module of its flows and one or more batches (dicts), as in "
                "engine.call(policy.forward_step, data)."
            )
        self._deploy()
        with self._globals():
            self._deployed.occupy([module.name, *(client.name for client in find_clients(constants))])
            return self._deployed.call_step(module, name, data, constants)

    def check(self) -> str:
        """Checks configuration, flows and data sets without starting anything; returns the flows as text, with notes.

        Raises:
            ChatLearnError: what is wrong.
        """
        if (checked := _only_checking.get()) is not None:
            checked.append(self)
        return "\n\n".join([*(render(executor.graph) for executor in self._executors), *self._checked_notes()])

    def save_checkpoint(self) -> None:
        """Saves the run as it is; called inside of an episode (by a callback), at the end of that episode.

        Raises:
            EngineError: ``learn()`` has not begun, so there is no run to save.
        """
        if self._now is not None:
            self._save_asked = True
            return
        assert self._settled  # refuses once a new run has begun
        if self._run is None or self._deployment is None:
            raise EngineError("There is nothing to save yet: call save_checkpoint() in a callback, or after learn().")
        self._run.save(self._deployment)
        self._run.checkpoints.commit(self._deployment)

    def logging_summary(self) -> str:
        """Prints metrics and times of the last complete episode as a table, and returns the text.

        Raises:
            EngineError: no episode is complete.
        """
        if self._run is None or self._run.last_row is None:
            raise EngineError("There is nothing to sum up yet: no episode of this engine is complete.")
        table = summary_table(self._run.last_row)
        print(table)
        return table

    def stop(self) -> None:
        """Ends all replicas; a later call starts them anew. Inside of an episode (called by a callback) it ends the
        run after that episode.
        """
        if self._now is not None:
            self._stop_reason = "engine.stop() was called"
        else:
            self._end_deployment()

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
        self._deployed.occupy(self._at_work_at_first)
        experience = self._stream(run, self._source(run))
        if not self._trains_on_arrival:
            experience.fill()
        run.lap("experience")
        return experience

    def _source(self, run: Run) -> Iterator[Experience]:
        if self.environment is not None:
            return self.environment.stream(self._deployed, run.state, lambda text: run.note_once("refill", text))
        return iter(()) if self.trainer is None else self.trainer.stream(self._deployed, run.state)

    def _train(self, run: Run, experience: StreamDataset) -> None:
        if self.trainer is not None:
            self._deployed.occupy(self._at_work_at_first if self._trains_on_arrival else self.trainer.graph.modules)
            self.trainer.train(self._deployed, run.state, self._replayed(run, experience))
            run.lap("train")
        if self.environment is not None:
            run.log_samples(self._deployed, experience.experience)

    def _replayed(self, run: Run, experience: StreamDataset) -> StreamDataset:
        """What is trained on: the episode's experience, or what is chosen of several episodes'."""
        if run.replay is None:
            return experience
        run.replay.add(self._deployed, run.state.episode, experience)
        chosen = self._stream(run, run.replay.choose(self._deployed, run.state.episode))
        chosen.fill()
        return chosen

    def _stream(self, run: Run, source: Iterator[Experience]) -> StreamDataset:
        runtime, episode = run.config.runtime, run.state.episode
        return StreamDataset(
            runtime.train_global_batch_size,
            lambda epoch: derive_seed(runtime.seed, "order", episode, epoch),
            source,
            runtime.train_micro_batch_size if runtime.training_shuffle_mode == "batch" else 1,
        )

    def _sync_parameters(self, run: Run, episodes: int, is_first: bool = False) -> None:
        """Syncs the pairs whose turn it is after so many episodes; all of them share the number of the version."""
        due = [sync for sync, frequency in self._syncs if episodes % frequency == 0]
        if is_first:
            due = [sync for sync in due if not run.checkpoints.restores_weights(sync.modules[1])]
        version = run.state.weight_version or 1 if is_first else run.state.weight_version + 1
        for together in [due] if run.config.runtime.concurrent_comm else [[sync] for sync in due]:
            if together:
                self._deployed.occupy({name for sync in together for name in sync.modules})
                synchronise(together, version)
                run.state.weight_version = version
        run.lap("sync")

    def _begin_episode(self, run: Run) -> EpisodeInfo:
        self._now = EpisodeInfo(self, run.state.episode)
        self._deployed.publish()
        self._deployed.hook("before_episode", f"episode {run.state.episode + 1}")
        self._reach("before_episode", run)
        return self._now

    def _reach(self, point: str, run: Run) -> None:
        """Runs the callbacks of a point of the episode."""
        assert self._now is not None
        self._callbacks.run(point, self._now, run.config.runtime.seed)

    def _end_episode(self, run: Run, info: EpisodeInfo) -> None:
        self._deployed.hook("after_episode", f"episode {run.state.episode + 1}")
        run.state.episode += 1
        info.metrics |= self._deployed.take_metrics()
        self._reach("after_episode", run)

    def _save(self, run: Run, info: EpisodeInfo) -> None:
        """Saves what is due, and sees whether the run has seen enough.

        Raises:
            Interrupted: it was told to end after this episode.
        """
        is_best = run.best.update(run.last_row or {})
        is_asked = self._save_asked or self._termination.is_asked_for
        if run.checkpoints.is_due(run.state) or is_asked or is_best:
            run.save(self._deployed, is_best)
            self._reach("after_save", run)
        else:
            run.checkpoints.commit(self._deployed, wait=False)
        self._save_asked, self._now = False, None
        self._stop_reason = self._stop_reason or run.best.reason_to_stop
        if is_asked:  # else SIGTERM came just now, and ends the run after the next episode, saved
            self._termination.end_if_asked()

    def _evaluate_before(self, run: Run) -> Evaluation | None:
        if not run.config.runtime.enable_eval_before_training or run.state.episode or self.evaluator is None:
            return None
        if not self._trains_or_samples:
            return None
        evaluation = self._evaluate(run)
        run.log(evaluation.metrics, 0)
        return evaluation

    def _evaluate(self, run: Run) -> Evaluation:
        assert self.evaluator is not None
        self._deployed.occupy(self.evaluator.graph.modules)
        evaluation = self.evaluator.evaluate(self._deployed, run.state.episode, run.state.global_batches)
        run.lap("evaluate")
        return evaluation

    def _evaluation_is_due(self, run: Run) -> bool:
        if self.evaluator is None:
            return False
        interval = run.config.runtime.eval_episode_interval
        return not self._trains_or_samples or bool(interval and run.state.episode % interval == 0)

    # -- starting and ending --

    @property
    def _num_episodes(self) -> int:
        """An engine that only measures does so once."""
        return self._settled.runtime.num_episode if self._trains_or_samples else 1

    @property
    def _deployed(self) -> Deployment:
        assert self._deployment is not None
        return self._deployment

    @contextmanager
    def _globals(self) -> Generator[None]:
        """The process's global state as a run wants it, and as it was afterwards."""
        with preserved_globals(), deterministic_kernels(self._settled.runtime.deterministic):
            yield

    def _end_of_check(self) -> None:
        """A check starts nothing, so it ends where the program goes on with what only a run can give."""
        if _only_checking.get() is not None:
            if self._config is None:
                print(self.check())
            print("The check ends here: the program goes on with results.")
            raise SystemExit(0)

    @contextmanager
    def _claimed_folder(self) -> Generator[RunFolder]:
        """The run's folder, which nobody else writes to meanwhile."""
        config = self._settled
        if self._run is not None:
            raise EngineError("This engine has learned already. Make a new one; or resume its run with runtime.resume.")
        self._checked_notes()
        with claimed_folder(config) as folder:
            yield folder

    def _deploy(self) -> None:
        """Starts the modules, once."""
        self._end_of_check()
        config = self._settled
        has_learned = self._run is not None and self._run.has_ended
        if self._deployment is not None:
            if self._deployment.holds(self._modules):
                return
            if has_learned:
                raise EngineError("This engine has learned; a flow over other modules needs an engine of its own.")
            self._end_deployment()  # it was made for other flows
        if self._run is not None and has_learned:
            raise EngineError(
                f"The replicas of this run have ended, and the trained weights with them: engine.stop() was called, or "
                f"the run had come to its end before. Call it earlier, or use what the run left in {self._run.path}."
            )
        notes = self._checked_notes()
        trained = () if self.trainer is None else self.trainer.graph.modules
        deployment = Deployment(config, self._modules, trained)
        try:
            with self._globals():
                deployment.start()
        except BaseException:
            deployment.stop()
            raise
        self._deployment = deployment
        for note in notes:
            print(f"note: {note}")

    def _end_deployment(self) -> None:
        self._now = None
        deployment, self._deployment = self._deployment, None
        if deployment is not None:
            deployment.stop()

    @contextmanager
    def _running(self, folder: RunFolder, restarts: Restarts) -> Generator[Run]:
        """Everything open; afterwards files are closed. An error that a restart makes up for ends here."""
        run = self._run = Run(self._settled, folder, self._kept())
        notes = run.checkpoints.check()
        has_begun = False
        with self._globals(), sigterm_ends(self._settled.runtime.sigterm_seconds) as self._termination:
            try:
                run.write_config()
                self._deploy()
                run.open(self._deployed, self._num_episodes)
                for note in notes:
                    run.note(f"note: {note}")
                self._syncs = open_syncs(self._deployed, self._frequencies(), run.note)
                self._stop_reason, has_begun = run.best.reason_to_stop, True
                with frozen_heap(), self._termination.deferred():
                    run.lap("setup")
                    yield run
            except KeyboardInterrupt:
                interrupt = Interrupted(self._termination.code)
                close_after(interrupt, self._end_saving, partial(run.end, "interrupted"), self._end_deployment)
                raise interrupt from None
            except BaseException as error:
                goes_on = has_begun and not self._termination.is_asked_for and restarts.follows(error)
                end = partial(run.close if goes_on else run.end, "failed")
                ends_saving = [] if isinstance(error, WorkerError) else [self._end_saving]
                close_after(error, *ends_saving, end, self._end_deployment)
                if not goes_on:
                    raise
            else:
                self._termination.end_if_asked()  # it came while the finished run was closed

    def _end_saving(self) -> None:
        """Ends the checkpoint that is being written, if there is one."""
        if self._run is not None and self._deployment is not None:
            self._run.checkpoints.commit(self._deployment)
