"""Bad flows: what needs data before there is any, calls that fit no step, values in the wrong place, order."""

from __future__ import annotations

from typing import Any

import torch
from bad_input_areas.cause import Causes
from bad_input_areas.program import Echo, learn, train

import chatlearn
from chatlearn import Engine, Environment, FlowError, MissingStepError, Trainer

CAUSES = Causes()
cause = CAUSES.cause


class Judge(Echo):
    """Steps with signatures and declarations of their own."""

    @chatlearn.step
    def compare(self, first: dict[str, Any], second: dict[str, Any], strict: bool = False) -> dict[str, Any]:
        """Takes two batches separately."""
        return first

    @chatlearn.step
    def ask(self, data: dict[str, Any], other: Any = None) -> dict[str, Any]:
        """Calls another module."""
        return other.forward_step(data)

    @chatlearn.step(filters=True)
    def keep_good(self, data: dict[str, Any]) -> dict[str, Any]:
        """May drop rows."""
        return {**data, "source_rows": range(len(data["prompt"]))}

    @chatlearn.step(writes={"score"})
    def score(self, data: dict[str, Any]) -> dict[str, Any]:
        """Adds a key."""
        return {**data, "score": [1.0 for _ in data["prompt"]]}

    @chatlearn.step(reads={"score"})
    def report(self, data: dict[str, Any]) -> dict[str, Any]:
        """Needs a key."""
        return data


policy, reward, judge, learner = Echo("policy"), Echo("reward"), Judge("judge"), Echo("learner")

INTO_A_STEP = "Move what depends on data into a step of a module"

# -- Data that isn't there yet -----------------------------------------------------------------------------------------


@cause(
    FlowError,
    says="the flow asks for the truth value (an `if`, `while`, `and`, `or`, `not` or `assert`) of the output of policy",
    at="train.py:3",
    fix=INTO_A_STEP,
)
def branch() -> None:
    """A flow branches on data."""

    def flow(batch: Any) -> Any:
        out = policy.forward_step(batch)
        return reward.forward_step(out) if out["score"].mean() > 0 else out

    learn(flow)


@cause(
    FlowError,
    says="the flow iterates over the contents of the batch['prompt']",
    at=("train.py:1", "read at train.py:1"),
    fix=INTO_A_STEP,
)
def loop() -> None:
    """A flow loops over the samples of a batch."""
    learn(lambda batch: [policy.forward_step(prompt) for prompt in batch["prompt"]])


@cause(FlowError, says="the flow sets ['score'] in the contents of the batch", at="train.py:2", fix=INTO_A_STEP)
def change() -> None:
    """A flow writes into a batch."""

    def flow(batch: Any) -> Any:
        batch["score"] = 1.0
        return policy.forward_step(batch)

    learn(flow)


@cause(FlowError, says="the flow hands a stand-in for data to torch (stack)", at="train.py:1", fix=INTO_A_STEP)
def torch_function() -> None:
    """A flow computes with torch."""
    learn(lambda batch: policy.forward_step({"x": torch.stack([batch["x"], batch["y"]])}))


@cause(
    FlowError,
    says="reward.forward_step is given the output of policy.forward_step['tokens']",
    at=("train.py:3", "read at train.py:2"),
    fix="Pass the whole batch, and read from it inside the step",
)
def part_of_a_batch() -> None:
    """A step gets a part of a batch."""

    def flow(batch: Any) -> Any:
        tokens = policy.forward_step(batch)["tokens"]
        return reward.forward_step(tokens)

    learn(flow)


@cause(
    FlowError,
    says="env_flow returns the output of policy.forward_step['tokens'], read at train.py:1",
    at="train.py:1",
    fix="Return whole outputs of steps",
)
def part_returned() -> None:
    """A flow returns a part of a batch."""
    learn(lambda batch: policy.forward_step(batch)["tokens"])


# -- Calls -------------------------------------------------------------------------------------------------------------


@cause(
    FlowError,
    says="reward.forward_step is given a list that contains the output of policy.forward_step",
    at="train.py:1",
    fix="Pass batches as arguments of their own",
)
def list_of_batches() -> None:
    """A step gets a list of batches."""
    learn(lambda batch: reward.forward_step([policy.forward_step(batch), batch]))


@cause(FlowError, says="judge.compare takes first, second, but gets 4", at="train.py:1", fix="Merge or drop some")
def too_many_arguments() -> None:
    """A step gets more batches than it takes."""
    learn(lambda batch: judge.compare(batch, batch, batch, batch))


@cause(
    FlowError,
    says="judge.compare is called without its parameter 'second'",
    at="train.py:1",
    fix="Pass a value for it",
)
def too_few_arguments() -> None:
    """A step gets fewer batches than it takes."""
    learn(lambda batch: judge.compare(batch))


@cause(FlowError, says="judge.compare has no parameter 'exact'", at="train.py:1", fix="it has first, second, strict")
def unknown_parameter() -> None:
    """A step has no parameter of that name."""
    learn(lambda batch: judge.compare(batch, batch, exact=True))


@cause(
    FlowError,
    says="judge.compare gets 'first' twice, by position and by name",
    at="train.py:1",
    fix="Leave one of them out",
)
def parameter_twice() -> None:
    """A parameter is given by position and by name."""
    learn(lambda batch: judge.compare(batch, batch, first=batch))


@cause(
    FlowError,
    says="learner.train_step is given 'train_info', which chatlearn fills in itself",
    at="train.py:1",
    fix="Leave it out",
)
def own_train_info() -> None:
    """A flow passes what chatlearn fills in."""
    train(lambda batch: learner.train_step(batch, train_info={"iteration": 0}))


@cause(
    FlowError,
    says="policy.forward_step gets a plain value before a batch",
    at="train.py:1",
    fix="pass batches first, the rest by keyword",
)
def value_before_batch() -> None:
    """A plain value stands before a batch."""
    learn(lambda batch: policy.forward_step(0.7, batch))


@cause(
    FlowError,
    says="policy.forward_step is called in the flow env_flow with none of the flow's values",
    at="train.py:1",
    fix="pass the batch or outputs of steps, or call the step outside of the flow",
)
def call_with_real_data() -> None:
    """A flow calls a step with data of its own."""
    learn(lambda batch: policy.forward_step({"prompt": ["a"]}))


@cause(
    MissingStepError,
    says="Echo (module 'policy') has no eval_step",
    at="module 'policy'",
    fix="Define `def eval_step(self, data, …)` in the class",
)
def missing_step() -> None:
    """A module has no such step."""
    learn(lambda batch: policy.eval_step(batch))


@cause(
    FlowError,
    says="learner.train_step in env_flow",
    at="train.py:1",
    fix="train_step belongs into the flow of a Trainer",
)
def training_in_an_environment() -> None:
    """An environment's flow trains."""
    learn(lambda batch: learner.train_step(batch))


@cause(
    FlowError,
    says="judge.keep_good in trainer_flow",
    at="train.py:1",
    fix="a step that expands or filters belongs into the flow of an Environment",
)
def filter_in_a_trainer() -> None:
    """A trainer's flow drops rows."""
    train(lambda batch: learner.train_step(judge.keep_good(batch)))


# -- Values ------------------------------------------------------------------------------------------------------------


@cause(
    FlowError,
    says="reward.forward_step takes the output of learner.train_step, but a train_step's value stands for nothing",
    at="train.py:1",
    fix="Pass the batch, or the output of another step",
)
def value_of_a_train_step() -> None:
    """A step gets what a `train_step` returns."""
    train(lambda batch: reward.forward_step(learner.train_step(batch)))


@cause(
    FlowError,
    says="reward.forward_step takes a value of a flow that has returned",
    at="train.py:4",
    fix="a value lives in the flow that made it",
)
def value_of_another_flow() -> None:
    """A flow uses a value of another flow."""
    kept: list[Any] = []
    Environment(lambda batch: kept.append(policy.forward_step(batch)))

    learn(lambda batch: reward.forward_step(kept[0]))


@cause(
    FlowError,
    says="env_flow returns 3",
    at="train.py:1",
    fix="it may return outputs of steps, alone or in one tuple, list or dict",
)
def number_returned() -> None:
    """A flow returns something that no step made."""
    learn(lambda batch: (policy.forward_step(batch), 3))


@cause(FlowError, says="env_flow calls no step of a module", at="train.py:1", fix="`out = policy.forward_step(batch)`")
def no_step() -> None:
    """A flow calls no step."""
    learn(lambda batch: batch)


@cause(
    FlowError,
    says="env_flow returns nothing, so the trainer would get nothing",
    at="train.py:1",
    fix="Return the values that training needs",
)
def nothing_for_the_trainer() -> None:
    """An environment makes experience and returns nothing to its trainer."""

    def env_flow(batch: Any) -> None:
        policy.forward_step(batch)

    Engine(Environment(env_flow), Trainer(lambda batch: learner.train_step(batch))).set_dataset(["a"]).learn()


@cause(
    FlowError,
    says="judge.report reads 'score', which batch can't hold",
    at="train.py:1",
    fix="judge.score (train.py:1) writes 'score': pass its output to judge.report",
)
def missing_key() -> None:
    """A step needs a key that its input can't hold."""
    learn(lambda batch: (judge.score(batch), judge.report(batch)))


@cause(
    FlowError,
    says="set_parameter_sync(learner, policy): no flow of this engine calls a step of 'learner'",
    at="set_parameter_sync(learner, policy)",
    fix="Use the same module objects in the flows and in the sync; the flows use policy",
)
def sync_with_a_stranger() -> None:
    """A sync names a module that no flow calls."""
    environment = Environment(lambda batch: policy.forward_step(batch))
    Engine(environment).set_parameter_sync(learner, policy).set_dataset(["a"]).learn()


# -- Flow functions ----------------------------------------------------------------------------------------------------


@cause(FlowError, says="got str 'env_flow'", at="'env_flow'", fix="A flow is a function of one batch")
def no_function() -> None:
    """A flow is no function."""
    learn("env_flow")


@cause(FlowError, says="can't be called as env_flow(batch)", at="train.py:1", fix="a flow takes one batch")
def two_parameters() -> None:
    """A flow takes two batches."""
    learn(lambda batch, other: policy.forward_step(batch, other))


@cause(FlowError, says="flow is a generator", at="train.py:1", fix="a flow is a plain function that returns its values")
def generator() -> None:
    """A flow yields its values."""

    def flow(batch: Any) -> Any:
        yield policy.forward_step(batch)

    learn(flow)


# -- Order, rows, clients ----------------------------------------------------------------------------------------------


@cause(
    FlowError, says="after(…) does nothing by itself", at="train.py:3", fix="Write `with chatlearn.after(…):` around"
)
def after_without_with() -> None:
    """`after` stands without `with`."""

    def flow(batch: Any) -> Any:
        out = policy.forward_step(batch)
        chatlearn.after(out)
        return reward.forward_step(batch)

    learn(flow)


@cause(
    FlowError, says="after(…) is given the module 'policy'", at="train.py:2", fix="`with chatlearn.after(policy_out):`"
)
def after_a_module() -> None:
    """`after` names a module."""

    def flow(batch: Any) -> Any:
        with chatlearn.after(policy):
            return reward.forward_step(batch)

    learn(flow)


@cause(FlowError, says="after(…) names the batch", at="train.py:2", fix="Name outputs of steps")
def after_the_batch() -> None:
    """`after` names the batch."""

    def flow(batch: Any) -> Any:
        with chatlearn.after(batch):
            return reward.forward_step(batch)

    learn(flow)


@cause(
    FlowError,
    says="reward.forward_step gets rows that can't be matched: judge.keep_good (train.py:1) and judge.keep_good#1",
    at="train.py:1",
    fix="Call one of them on the output of the other",
)
def two_filters() -> None:
    """Two steps drop rows of the same batch, each its own, and a third gets both."""
    learn(lambda batch: reward.forward_step(judge.keep_good(batch), judge.keep_good(policy.forward_step(batch))))


@cause(
    FlowError,
    says="critic.ask is given 'judge' as a client, but judge.ask is given 'critic' at train.py:2",
    at="train.py:2",
    fix="Let one of them return what the other needs",
)
def circle_of_clients() -> None:
    """Two modules are to call each other."""
    critic = Judge("critic")
    learn(lambda batch: critic.ask(judge.ask(batch, other=critic), other=judge))
