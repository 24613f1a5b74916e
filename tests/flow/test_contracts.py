"""Steps that read keys which can't be there are found before anything runs. The flows are worked out by hand."""

from __future__ import annotations

import pytest
from flow_cases import Model, place

from chatlearn import BaseModule, step
from chatlearn.errors import FlowError
from chatlearn.flow import Known, missing_reads, trace, yields
from chatlearn.flow.contracts import UNKNOWN_DATA, Beyond


class Policy(BaseModule):
    reads = frozenset({"prompt"})
    writes = frozenset({"tokens", "logprobs"})

    def forward_step(self, data): ...


class Reference(BaseModule):
    reads = frozenset({"tokens"})
    writes = frozenset({"ref_logprobs"})

    def forward_step(self, data): ...

    @step(reads={"chosen"}, writes={"margin"})
    def margins(self, data): ...

    @step(reads=())
    def free(self, data): ...

    @step(writes=())
    def check(self, data): ...


class Reward(BaseModule):
    reads = frozenset({"tokens", "ref_logprobs"})
    writes = frozenset({"rewards"})

    def forward_step(self, data): ...


class Rewriter(BaseModule):
    reads = frozenset({"prompt"})
    writes = frozenset({"prompt"})

    def forward_step(self, data): ...


class Learner(BaseModule):
    reads = frozenset({"tokens", "rewards"})

    def train_step(self, data, train_info): ...


policy, reference, reward, learner = Policy("policy"), Reference("reference"), Reward("reward"), Learner("learner")
rewriter, user = Rewriter("rewriter"), Model("user")


def good(batch):
    out = policy.forward_step(batch)
    ref = reference.forward_step(out)
    return reward.forward_step(out, ref)


def not_passed_on(batch):
    out = policy.forward_step(batch)
    reference.forward_step(out)
    return reward.forward_step(out)


def called_later(batch):
    out = policy.forward_step(batch)
    rewards = reward.forward_step(out)
    reference.forward_step(rewards)
    return rewards


def nobody_writes(batch):
    return reward.forward_step(policy.forward_step(batch))


def through_a_step_of_the_user(batch):
    out = policy.forward_step(batch)
    reference.forward_step(out)
    return reward.forward_step(user.forward_step(out))


def test_a_flow_that_is_right():
    graph = trace(good)
    assert missing_reads(graph) == []
    assert missing_reads(graph, frozenset({"prompt", "answer"})) == []


def test_a_key_whose_writer_is_not_upstream():
    (problem,) = missing_reads(trace(not_passed_on))
    assert problem == (
        f"{place(not_passed_on, 'reward.')}: reward.forward_step reads 'ref_logprobs', which policy.forward_step can't "
        f"hold. reference.forward_step ({place(not_passed_on, 'reference.')}) writes 'ref_logprobs': pass its output "
        f"to reward.forward_step."
    )


def test_a_key_whose_writer_is_called_later():
    (problem,) = missing_reads(trace(called_later))
    assert problem.startswith(f"{place(called_later, 'reward.')}: reward.forward_step reads 'ref_logprobs'")
    assert "but is called later: call it first" in problem


def test_a_key_that_nobody_writes_may_be_one_of_the_data_set_if_its_keys_are_not_known():
    graph = trace(nobody_writes)
    assert missing_reads(graph) == []
    assert missing_reads(graph, frozenset({"prompt", "ref_logprobs"})) == []
    (problem,) = missing_reads(graph, frozenset({"prompt"}))
    assert (
        "reads 'ref_logprobs', which policy.forward_step can't hold. No step of the flow declares to write" in problem
    )


def test_below_a_step_that_declares_nothing_anything_may_be_there():
    graph = trace(through_a_step_of_the_user)
    assert missing_reads(graph) == []
    assert missing_reads(graph, frozenset({"prompt"})) == []


def test_the_raw_batch_beside_an_output_counts():
    def flow(batch):
        return reward.forward_step(policy.forward_step(batch), batch)

    graph = trace(flow)
    assert missing_reads(graph, frozenset({"prompt", "ref_logprobs"})) == []
    (problem,) = missing_reads(graph, frozenset({"prompt"}))
    assert "which policy.forward_step and batch can't hold" in problem


def test_all_missing_keys_of_a_step_and_all_steps_come_together():
    def flow(batch):
        reward.forward_step(batch)
        out = policy.forward_step(batch)
        return reward.forward_step(out)

    first, second, third = missing_reads(trace(flow), frozenset({"answer"}))
    assert "reward.forward_step reads 'ref_logprobs', 'tokens'" in first
    assert "policy.forward_step" in second
    assert "'prompt'" in second
    assert "reward.forward_step#1 reads 'ref_logprobs'," in third


def test_a_step_that_changes_a_key_is_not_taken_for_its_only_maker():
    """The rewriter reads ``prompt`` itself, so the data set has it, and the first policy may read it from there."""

    def flow(batch):
        direct = policy.forward_step(batch)
        return direct, policy.forward_step(rewriter.forward_step(batch))

    assert missing_reads(trace(flow)) == []


def test_a_step_s_own_declaration_goes_before_the_class_s():
    node, free, check = trace(
        lambda b: [reference.margins(b), reference.free(b), reference.check(b)]
    ).nodes  # fmt: skip
    assert (node.reads, node.writes) == ({"chosen"}, {"margin"})
    assert (free.reads, free.writes) == (frozenset(), {"ref_logprobs"})
    assert (check.reads, check.writes) == ({"tokens"}, frozenset())
    (problem,) = missing_reads(trace(lambda b: reference.margins(b)), frozenset({"tokens"}))
    assert "reads 'chosen'" in problem


def test_a_step_that_declares_to_write_nothing_passes_its_inputs_on():
    graph = trace(lambda batch: reward.forward_step(reference.check(batch)))
    assert yields(graph, frozenset({"tokens"})) == Known(frozenset({"tokens", "rewards"}))
    assert len(missing_reads(graph, frozenset({"tokens"}))) == 1


@pytest.mark.parametrize(
    ("flow", "raw", "expected"),
    [
        (good, {"prompt"}, Known(frozenset({"prompt", "tokens", "logprobs", "ref_logprobs", "rewards"}))),
        (good, None, Known(frozenset({"tokens", "logprobs", "ref_logprobs", "rewards"}), Beyond.DATA)),
        (through_a_step_of_the_user, {"prompt"}, Known(frozenset({"rewards"}), Beyond.ANYTHING)),
        (lambda b: (policy.forward_step(b), None)[1], None, Known()),
        (lambda b: (policy.forward_step(b), b)[1], {"prompt"}, Known(frozenset({"prompt"}))),
    ],
    ids=["closed", "open data", "a step of the user", "nothing", "the batch"],
)
def test_what_a_flow_yields(flow, raw, expected):
    known = yields(trace(flow), None if raw is None else frozenset(raw))
    assert known == expected
    assert known.is_open == (expected.beyond is not Beyond.NOTHING)


def train(batch):
    learner.train_step(batch)


@pytest.mark.parametrize("raw", [None, frozenset({"prompt", "answer"})], ids=["open data", "known data"])
def test_a_trainer_reads_what_the_environment_yields(raw):
    trainer = trace(train)
    environment = trace(good)
    assert missing_reads(trainer, yields(environment, raw), others=[environment]) == []

    def forgets_the_reward(batch):
        out = policy.forward_step(batch)
        reward.forward_step(out, reference.forward_step(out))
        return out

    environment = trace(forgets_the_reward)
    (problem,) = missing_reads(trainer, yields(environment, raw), others=[environment])
    assert problem.startswith(f"{place(train, 'train_step')}: learner.train_step reads 'rewards', which batch can't")
    assert f"reward.forward_step ({place(forgets_the_reward, 'reward.')}) writes 'rewards': return its output in " in (
        problem
    )


def test_partly_known_data():
    """The first sample shows some keys; others may have more."""
    known = UNKNOWN_DATA | Known(frozenset({"tokens", "ref_logprobs"}))
    assert missing_reads(trace(lambda b: (policy.forward_step(b), reward.forward_step(b))), known) == []


@pytest.mark.parametrize("keys", ["tokens", [1, 2]], ids=["a string", "numbers"])
def test_a_malformed_declaration(keys):
    class Wrong(Policy):
        reads = keys

    wrong = Wrong("wrong")
    with pytest.raises(FlowError, match=r"`reads` of wrong.forward_step is .*; give a set of keys"):
        trace(lambda batch: wrong.forward_step(batch))


def test_the_ready_made_modules_fit_together_as_in_ppo():
    from chatlearn.modules import torch as torch_modules

    p, r = torch_modules.PolicyInference("p"), torch_modules.PolicyReference("r")
    v, w = torch_modules.ValueInference("v"), torch_modules.RewardInference("w")
    pt, vt = torch_modules.PolicyTrainer("pt"), torch_modules.ValueTrainer("vt")

    def environment(batch):
        out = p.forward_step(batch)
        values = v.forward_step(out)
        return values, w.forward_step(out, r.forward_step(out), values)

    def trainer(batch):
        pt.train_step(batch)
        vt.train_step(batch)

    def wrong(batch):
        return w.forward_step(r.forward_step(batch))

    graph = trace(environment)
    assert missing_reads(graph) == []
    assert missing_reads(trace(trainer), yields(graph), others=[graph]) == []
    assert len(missing_reads(trace(wrong), frozenset({"prompt"}))) == 2
