"""Bad use of an engine: in the wrong order, with parts that aren't its own, and runs that can't go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, begin, command, engine_of, module

from chatlearn import CheckpointError, ConfigError, Engine, EngineError, Environment, EvalEngine, Evaluator, Trainer

CAUSES = Causes()
cause = CAUSES.cause

# -- The order of calls ------------------------------------------------------------------------------------------------


@cause(
    EngineError, says="The engine has no environment, no trainer and no evaluator", at="The engine", fix="Give it at"
)
def empty_engine() -> None:
    """An engine has nothing to do."""
    Engine().learn()


@cause(
    EngineError,
    says="This engine has learned already",
    at="This engine",
    fix="Make a new one; or resume its run with runtime.resume",
)
def learn_twice() -> None:
    """An engine is to learn twice."""
    engine = engine_of(Echo("policy"))
    engine.learn()
    engine.learn()


@cause(
    EngineError,
    says="chatlearn.init() was called again after this engine was used",
    at="this engine",
    fix="Make modules and engine anew",
)
def init_again() -> None:
    """An engine is used after a second `init`."""
    policy = Echo("policy")
    engine = engine_of(policy)
    engine.learn()
    begin()
    engine.call(policy.forward_step, {"prompt": ["a"]})


@cause(
    EngineError,
    says="There is nothing to save yet",
    at="save_checkpoint()",
    fix="call save_checkpoint() in a callback, or after learn()",
)
def save_too_early() -> None:
    """A checkpoint is to be saved before there is a run."""
    engine_of(Echo("policy")).save_checkpoint()


@cause(
    EngineError,
    says="There is nothing to sum up yet",
    at="this engine",
    fix="no episode of this engine is complete",
)
def summary_too_early() -> None:
    """A summary is asked for before an episode is complete."""
    engine_of(Echo("policy")).logging_summary()


@cause(EngineError, says="The engine has no run yet", at="The engine", fix="it begins with learn()")
def run_too_early() -> None:
    """The run folder is asked for before there is one."""
    engine_of(Echo("policy")).run.path  # noqa: B018


@cause(
    EngineError,
    says="The engine has no evaluator",
    at="The engine",
    fix="Pass one, or call set_evaluator(Evaluator(eval_flow).set_dataset(prompts))",
)
def no_evaluator() -> None:
    """An engine without an evaluator is to evaluate."""
    engine_of(Echo("policy")).evaluate()


@cause(
    EngineError,
    says="train.py came to its end without engine.learn()",
    at="train.py",
    fix="engine.learn()",
)
def nothing_to_check() -> None:
    """`chatlearn check` gets a program that never learns."""
    Path("train.py").write_text("import chatlearn\n\nchatlearn.init()\n")
    command("check", "train.py")


# -- Parts -------------------------------------------------------------------------------------------------------------


@cause(
    EngineError,
    says="eval_flow uses judge, which no flow of the engine calls",
    at="eval_flow",
    fix="Use the engine's modules",
)
def evaluator_of_others() -> None:
    """An evaluator uses a module that the engine does not have."""
    judge = Echo("judge")

    def eval_flow(batch: Any) -> Any:
        return judge.forward_step(batch)

    engine_of(Echo("policy")).evaluate(Evaluator(eval_flow).set_dataset(["a"]))


@cause(
    EngineError,
    says="engine.call takes a step of a module of its flows",
    at="engine.call",
    fix="engine.call(policy.forward_step, data)",
)
def call_of_a_stranger() -> None:
    """`engine.call` gets a step of a module that the engine does not have."""
    engine_of(Echo("policy")).call(Echo("judge").forward_step, {"prompt": ["a"]})


@cause(
    EngineError,
    says="engine.call: policy.forward_step takes first, second, but 1 batches are given",
    at="policy.forward_step",
    fix="takes first, second",
)
def call_with_too_few_batches() -> None:
    """`engine.call` gets fewer batches than the step takes."""

    def forward_step(self: Echo, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        return first

    policy: Any = module("policy", forward_step=forward_step)
    Engine(Environment(lambda batch: policy.forward_step(batch, batch))).set_dataset(["a"]).call(
        policy.forward_step, {"prompt": ["a"]}
    )


@cause(
    EngineError,
    says="There is no point 'after_eval' in an episode",
    at="'after_eval'",
    fix="Callbacks run at: before_episode, after_experience",
)
def unknown_point() -> None:
    """A callback is to run at an unknown point."""
    engine_of(Echo("policy")).add_callback("after_eval", print)


@cause(
    EngineError,
    says="a callback is a function of one EpisodeInfo",
    at="add_callback('after_save', …)",
    fix="a function of one EpisodeInfo",
)
def callback_without_a_function() -> None:
    """A callback is no function."""
    engine_of(Echo("policy")).add_callback("after_save", "print")  # type: ignore[arg-type]


@cause(
    EngineError,
    says="frequency is a number of episodes from 1 on, got 0",
    at="set_parameter_sync",
    fix="a number of episodes from 1 on",
)
def sync_frequency() -> None:
    """Weights are to be synchronised every 0 episodes."""
    policy = Echo("policy")
    engine_of(policy).set_parameter_sync(policy, policy, frequency=0)


@cause(
    EngineError,
    says="set_sampler takes a function (group, length, seed) -> index, got 'shuffle'",
    at="set_sampler",
    fix="a function (group, length, seed) -> index",
)
def sampler_without_a_function() -> None:
    """A sampler is no function."""
    engine_of(Echo("policy")).set_sampler("shuffle")  # type: ignore[arg-type]


@cause(
    EngineError,
    says="set_sampler chooses among all data sets by itself",
    at="set_sampler",
    fix="leave data_ratio out",
)
def sampler_and_ratio() -> None:
    """There are both a sampler and shares of data sets."""
    engine = engine_of(Echo("policy")).set_multiple_datasets([["a"], ["b"]], data_ratio=[1, 2])
    engine.set_sampler(lambda group, length, seed: group % length).learn()


@cause(EngineError, says="EvalEngine takes a flow, or an evaluator", at="EvalEngine", fix="EvalEngine(eval_flow)")
def eval_engine_without_a_flow() -> None:
    """An `EvalEngine` gets nothing to evaluate."""
    EvalEngine()


# -- Runs that can't go on ---------------------------------------------------------------------------------------------


class Linear(Echo):
    """A module with a linear model."""

    size = 2

    def setup(self) -> None:
        self.model = torch.nn.Linear(self.size, 1)


def run(learner: Echo, **runtime: Any) -> None:
    """A run that saves its state after each episode."""
    begin(save_episode_interval=1, **runtime)
    Engine(None, Trainer(lambda batch: learner.train_step(batch))).set_dataset(["a", "b"]).learn()


LAST = Path("runs/toy/checkpoints/episode-000002")


@cause(
    CheckpointError,
    says="runs/ppo is neither a run folder nor a checkpoint",
    at="runtime.resume",
    fix="Give the folder of a run (it holds config.yaml), one of its checkpoints/episode-…, or `auto`",
)
def resume_from_nowhere() -> None:
    """There is no run to go on with."""
    run(Linear("learner"), resume="runs/ppo")


@cause(
    CheckpointError,
    says="runtime.seed was 0 and is 1",
    at="runs/toy/checkpoints/episode-000002 was written under other settings",
    fix="Put them back, start a new run with runtime.resume=never, or go on with other numbers by --allow-change "
    "runtime.seed",
)
def resume_under_other_settings() -> None:
    """A run is to go on under other settings."""
    run(Linear("learner"))
    run(Linear("learner"), resume=str(LAST), seed=1, num_episode=3)


@cause(
    CheckpointError,
    says="the state in",
    at=("learner: ", "runs/toy/checkpoints/episode-000002 does not fit what setup() made"),
    fix="Resume with the model and optimizer of the run that was saved, or start a new run",
)
def resume_with_another_model() -> None:
    """A run is to go on with a model of another size."""
    run(Linear("learner"))
    run(type("Larger", (Linear,), {"size": 3})("learner"), resume=str(LAST), num_episode=3)


@cause(
    CheckpointError,
    says="run.json is cut off or overwritten",
    at="runs/toy/checkpoints/episode-000002/run.json",
    fix="The newest checkpoint that works: runtime.resume=",
)
def damaged_checkpoint() -> None:
    """A file of a checkpoint is damaged."""
    run(Linear("learner"))
    (LAST / "run.json").write_text('{"format": 1, "state": ')
    run(Linear("learner"), resume=str(LAST), num_episode=3)


@cause(
    CheckpointError,
    says="has format 99, of a newer or foreign version; this version reads format 2",
    at="runs/toy/checkpoints/episode-000002",
    fix="Resume with the version of chatlearn that wrote it, or start a new run",
)
def newer_checkpoint() -> None:
    """A checkpoint was written by a newer version."""
    run(Linear("learner"))
    (LAST / "manifest.json").write_text('{"format": 99}')
    run(Linear("learner"), resume=str(LAST), num_episode=3)


@cause(
    CheckpointError,
    says="runs is not the folder of a run",
    at="runs",
    fix="Give a folder such as runs/<exp_name>",
)
def report_of_no_run() -> None:
    """`chatlearn report` gets a folder that is no run."""
    Path("runs").mkdir()
    command("report", "runs")


@cause(ConfigError, says="can't be written: Is a directory", at="runs can't", fix="Give another path after -o")
def unwritable_output() -> None:
    """The output of a command can't be written."""
    Path("runs").mkdir()
    command("schema", "-o", "runs")
